"""Which checkpoint a run ships. `tests/test_splits.py` says which split is read for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from disk_kd import run
from disk_kd.cli import main
from disk_kd.data import AnySplit
from disk_kd.metrics import Metrics
from disk_kd.training.selection import RULE, WITHOUT_VALIDATION, selection_margin


def test_the_margin_is_one_standard_error() -> None:
    assert selection_margin(80.0, 5000) == pytest.approx(0.566, abs=1e-3)
    assert selection_margin(80.0, 40) == pytest.approx(6.32, abs=0.01)
    assert 100 / 40 < selection_margin(100.0, 40) < 200 / 40, "98 % is as good as 100 %, 95 % is not"


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A run's validation top-1, epoch by epoch; put there before the run begins. Its other metrics are real."""
    planned: list[float] = []
    evaluate_split = run.evaluate_split

    def measured(model: torch.nn.Module, split: AnySplit, *others: object) -> Metrics:
        metrics = evaluate_split(model, split, *others)  # type: ignore[arg-type]
        held_out = metrics.samples == 126  # of 1,258 digits
        return Metrics(**asdict(metrics) | {"top1": planned.pop(0)}) if held_out and planned else metrics

    monkeypatch.setattr(run, "evaluate_split", measured)
    return planned


@pytest.mark.parametrize(
    ("tops", "selected", "best"),
    [
        ([50.0, 90.0, 60.0, 60.0], 2, 90.0),
        ([50.0, 90.0, 90.0, 60.0], 3, 90.0),
        ([50.0, 90.0, 88.0, 60.0], 3, 90.0),
        # Each is within the margin of the one before, but the third is not of the highest.
        ([90.0, 88.0, 86.0, 84.0], 2, 90.0),
        ([90.0, 88.0, 91.0, 90.0], 4, 91.0),
    ],
)
def test_the_latest_within_the_margin_of_the_best_is_shipped(
    tops: list[float], selected: int, best: float, validated: list[float], tiny: Sequence[str], tmp_path: Path
) -> None:
    validated += tops
    output = tmp_path / "run"
    one_step = "--train.batch_size=120"
    assert main(["train", *tiny, one_step, "--train.epochs=4", "--train.lr=0.1", f"--output={output}"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["selected_epoch"] == selected
    margin = round(selection_margin(best, 126), 3)
    assert summary["selection"] == {
        **{"rule": RULE, "by": "top1", "margin": margin, "validation_images": 126},
        "best_top1": best,
    }
    shipped, kept = load_file(output / "student.safetensors"), load_file(output / "best" / "student.safetensors")
    assert all(torch.equal(shipped[name], kept[name]) for name in kept)
    assert (summary["test"]["nll"] == summary["last"]["test"]["nll"]) == (selected == 4)


def test_without_validation_the_last_is_shipped(tiny: Sequence[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(["train", *tiny, "--data.validation=0", f"--output={output}"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["selection"]["rule"] == WITHOUT_VALIDATION
    assert summary["selected_epoch"] == 2
