"""The section on training: loss and accuracy over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disk_kd.report.content import ReportContent
from disk_kd.report.drawing import Series
from disk_kd.report.figures import Line, over_epochs
from disk_kd.report.items import Figure, Figures, Item, Note, Section
from disk_kd.report.reading import Group, Run


def training(content: ReportContent) -> Section:
    """Curves of loss and accuracy."""
    panels = (
        ("train", "loss", "Loss, training", "nats", "Cross-entropy with the labels. All methods log it."),
        ("train", "top1", "Accuracy, training", "top-1, %", "Measured on augmented images during each epoch."),
        ("validation", "nll", "Loss, validation", "NLL, nats", ""),
        ("validation", "top1", "Accuracy, validation", "top-1, %", "It chooses the checkpoint."),
    )
    figures = []
    for kind, name, title, unit, note in panels:
        lines = [line for group in content.shown for line in group_lines(content.series[group.name], group, kind, name)]
        if lines and max(len(line.x) for line in lines) > 1:
            label = f"{title} over student epochs, for {line_names(lines)}"
            svg = over_epochs(f"{kind}-{name}", label, unit, lines, may_log=name in ("loss", "nll"))
            figures.append(Figure(svg, title, note, line_legend(lines)))
    items: list[Item] = [Figures(figures)] if figures else []
    if not any(len(logged_values(run, "validation", "top1")) > 1 for group in content.shown for run in group.runs):
        why = "no run validated more than once (train.evaluate_every)"
        items.append(Note(f"Validation curves are not shown: {why}.", missing=True))
    if any(len(group.runs) > 1 for group in content.shown):
        items.append(Note("Lines are means over seeds. Bands reach from the lowest to the highest seed."))
    if len(content.candidates) > len(content.shown):
        items.append(Note(shown_text(content)))
    return Section("training", "Training", items)


def shown_text(content: ReportContent) -> str:
    """States which groups the figures show, if there are many."""
    return (
        f"The figures show {len(content.shown)} of {len(content.candidates)} groups: {content.first} and the next ones,"
        " the first group whose method logs its own quantities, and the first that learned from labels alone."
        " The table of the runs has all groups."
    )


def group_lines(series: Series, group: Group, kind: str, name: str, limit: bool = False) -> list[Line]:
    """The line of a group: the mean over seeds if they were logged at the same epochs, else the chosen run.

    Args:
        series: the group's place in the figure.
        group: the runs to draw.
        kind: "train" or "validation".
        name: name of the number in the log.
        limit: whether the line is a limit of another line.
    """
    all_seeds = [found for run in group.runs if (found := logged_values(run, kind, name))]
    if not all_seeds:
        return []
    x = [at for at, _ in all_seeds[0]]
    same = all([at for at, _ in found] == x for found in all_seeds)
    if not same:
        all_seeds = [logged_values(group.chosen, kind, name) or all_seeds[0]]
        x = [at for at, _ in all_seeds[0]]
    columns = list(zip(*([value for _, value in found] for found in all_seeds), strict=True))
    mean = [sum(column) / len(column) for column in columns]
    if len(all_seeds) == 1 or limit:
        return [Line(series, x, mean, limit=limit)]
    return [Line(series, x, mean, [min(column) for column in columns], [max(column) for column in columns])]


def logged_values(run: Run, kind: str, name: str) -> list[tuple[float, float]]:
    """Epochs and values of a number in the log, without missing and non-finite values."""
    if kind == "validation":
        found: list[dict[str, Any]] = [line for line in run.lines if line["kind"] == kind]
        return [(line["student_epochs"], line[name]) for line in found if line.get(name) is not None]
    names = ("ce_loss", "loss") if name == "loss" else (name,)
    pairs = ((line["epochs"], next((line[n] for n in names if n in line), None)) for line in run.student_lines)
    return [(at, value) for at, value in pairs if value is not None]


def line_legend(lines: Sequence[Line]) -> list[Series]:
    """The series of lines, if there are several."""
    series = _all(lines)
    return series if len(series) > 1 else []


def _all(lines: Sequence[Line]) -> list[Series]:
    return list(dict.fromkeys(line.series for line in lines))


def line_names(lines: Sequence[Line]) -> str:
    """The names of the series of lines."""
    return ", ".join(series.name for series in _all(lines))
