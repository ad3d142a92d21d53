"""Predictions as text: CSV or lines of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from disk_kd.inference.model import TrainedClassifier
from disk_kd.inference.run import Prediction
from disk_kd.tables import csv_lines


def _csv(predictions: Iterable[Prediction], top_k: int) -> Iterator[str]:
    places = range(1, top_k + 1)
    names = ["path", *(f"{part}_{place}" for place in places for part in ("class", "probability"))]
    yield csv_lines([], names)
    for one in predictions:
        row = {"path": one.path}
        for place, name, probability in zip(places, one.classes, one.probabilities, strict=True):
            row |= {f"class_{place}": name, f"probability_{place}": f"{probability:.6f}"}
        yield csv_lines([row], names).partition("\n")[2]


def _jsonl(predictions: Iterable[Prediction], top_k: int) -> Iterator[str]:
    for one in predictions:
        best = [
            {"class": name, "label": label, "probability": probability}
            for name, label, probability in zip(one.classes, one.labels, one.probabilities, strict=True)
        ]
        yield json.dumps({"path": one.path, "top": best}) + "\n"


FORMATS: dict[str, Callable[[Iterable[Prediction], int], Iterator[str]]] = {"csv": _csv, "jsonl": _jsonl}
"""How each format writes predictions of `top_k` classes."""


def lines(predictions: Iterable[Prediction], kind: str, top_k: int) -> Iterator[str]:
    """The text of predictions, piece by piece.

    Args:
        predictions: with `top_k` classes each.
        kind: one of `FORMATS`.
        top_k: number of classes.
    """
    return FORMATS[kind](predictions, top_k)


def calibration_text(classifier: TrainedClassifier) -> str:
    """Whether the probabilities are calibrated, in one line."""
    if classifier.temperature is None:
        return "Probabilities are not calibrated: the model records no temperature."
    return f"Probabilities are calibrated: logits are divided by {classifier.temperature:.4f}, fitted on validation."


def counted(predictions: Iterable[Prediction], console: Console) -> Iterator[Prediction]:
    """The predictions, with a count of images on the console: on a terminal all the time, elsewhere at the end."""
    number, start = 0, time.monotonic()

    def text() -> str:
        return f"{number:,} images, {number / max(time.monotonic() - start, 1e-9):,.0f} a second"

    status = console.status("no image yet") if console.is_terminal else None
    if status is not None:
        status.start()
    try:
        for one in predictions:
            number += 1
            if status is not None and number % 20 == 0:
                status.update(text())
            yield one
    finally:
        if status is not None:
            status.stop()
    console.print(text(), highlight=False)
