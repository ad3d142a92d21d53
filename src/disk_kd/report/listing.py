"""An inspection as CSV, and how well each ranking finds labels that `data.label_noise` replaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from disk_kd.report.inspection import RANKINGS, Inspection, Ranking
from disk_kd.report.measures import area_under_curve, precision_at
from disk_kd.tables import csv_lines

_COLUMNS = ("rank", "index", "path", "label", "teacher_guess", "student_guess")
_NUMBERS = ("teacher_label", "teacher_best", "student_label", "student_best", "student_loss", "teacher_loss", "help")
_TITLES = {
    "teacher_label": "teacher_p_label",
    "teacher_best": "teacher_p_guess",
    "student_label": "student_p_label",
    "student_best": "student_p_guess",
    "help": "mean_g",
}


def csv_rows(inspection: Inspection, by: Ranking = "help") -> Iterator[dict[str, Any]]:
    """One row for each sample, the highest of the ranking first.

    `index` is the sample's number in the original training split. `path` is its file, if it has one.
    """
    split, names = inspection.split, inspection.split.shown_names
    for rank, at in enumerate(inspection.ranked(by), start=1):
        path = "" if split.paths is None else split.paths[at]
        guesses = [names[int(getattr(inspection, f"{who}_guess")[at])] for who in ("teacher", "student")]
        found = (rank, int(split.ids[at]), path, names[int(split.targets[at])], *guesses)
        row = dict(zip(_COLUMNS, found, strict=True))
        row |= {_TITLES.get(name, name): f"{float(getattr(inspection, name)[at]):.6g}" for name in _NUMBERS}
        if inspection.flipped is not None:
            row["flipped"] = int(inspection.flipped[at])
        yield row


def csv_text(inspection: Inspection, by: Ranking = "help") -> str:
    """`csv_rows` as CSV."""
    rows = list(csv_rows(inspection, by))
    return csv_lines(rows, list(rows[0]))


@dataclass(frozen=True)
class Found:
    """How well a ranking finds replaced labels.

    Args:
        by: the ranking.
        precision: share of replaced labels among the first k samples, where k labels were replaced.
        precision_half: the same for the first k / 2 samples.
        area: area under the ROC curve.
        faults: k.
    """

    by: str
    precision: float
    precision_half: float
    area: float
    faults: int


def found_faults(inspection: Inspection) -> list[Found]:
    """One line for each ranking. Empty if no label was replaced."""
    wrong = inspection.flipped
    if wrong is None or not wrong.any():
        return []
    count = int(wrong.sum())
    found = []
    for by in RANKINGS:
        scores = inspection.scores(by)
        at_all, at_half = (precision_at(scores, wrong, k) for k in (count, max(1, count // 2)))
        found.append(Found(by, at_all, at_half, area_under_curve(scores, wrong), count))
    return found


def faults_table(inspection: Inspection) -> Table:
    """`found_faults` for a terminal."""
    found = found_faults(inspection)
    count = found[0].faults if found else 0
    table = Table(title=f"Finding {count} replaced labels among {len(inspection.split):,}")
    for title in ("ranking", f"precision at {max(1, count // 2)}", f"at {count}", "area under ROC"):
        table.add_column(title, justify="left" if title == "ranking" else "right")
    for each in found:
        table.add_row(each.by, f"{each.precision_half:.3f}", f"{each.precision:.3f}", f"{each.area:.3f}")
    return table
