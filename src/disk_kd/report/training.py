"""The sections on training: loss and accuracy over epochs, and the budget asked against the budget used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disk_kd.report.drawing import MOST, Series
from disk_kd.report.figures import Line, over_epochs
from disk_kd.report.items import Figure, Figures, Item, Note, Section
from disk_kd.report.reading import Group, Run
from disk_kd.report.subject import Subject


def training(subject: Subject) -> Section:
    """Curves of loss and accuracy."""
    panels = (
        ("train", "loss", "Loss, training", "nats", "Cross-entropy with the labels, which all methods log alike."),
        ("train", "top1", "Accuracy, training", "top-1, %", "On augmented images, while the weights still move."),
        ("validation", "nll", "Loss, validation", "NLL, nats", ""),
        ("validation", "top1", "Accuracy, validation", "top-1, %", "What chooses the checkpoint."),
    )
    figures = []
    for kind, name, title, unit, note in panels:
        lines = [line for group in subject.shown for line in _lines(subject, group, kind, name)]
        if lines and max(len(line.x) for line in lines) > 1:
            label = f"{title} over student epochs, for {_names(lines)}"
            svg = over_epochs(f"{kind}-{name}", label, unit, lines, may_log=name in ("loss", "nll"))
            figures.append(Figure(svg, title, note, _legend(lines)))
    items: list[Item] = [Figures(figures)] if figures else []
    if not any(len(_values(run, "validation", "top1")) > 1 for group in subject.shown for run in group.runs):
        why = "no run validated more than once (train.evaluate_every)"
        items.append(Note(f"Left out: validation curves, because {why}.", missing=True))
    if any(len(group.runs) > 1 for group in subject.shown):
        items.append(Note("Lines are means over the seeds; bands reach from the lowest to the highest seed."))
    if len(subject.candidates) > len(subject.shown):
        items.append(Note(shown_text(subject)))
    return Section("training", "Training", items)


def shown_text(subject: Subject) -> str:
    """Which of many groups the figures show."""
    return (
        f"Figures show {len(subject.shown)} of {len(subject.candidates)}, {subject.first} first,"
        " and the first of DiSK and of the labels alone in any case. The table of the runs has all."
    )


def budget(subject: Subject) -> Section | None:
    """Help asked and given, its price, and how many examples it reached; None where no method has a budget."""
    groups = [group for group in subject.candidates if _values(group.chosen, "train", "budget_used")][:MOST]
    if not groups:
        return None
    asked = [line for group in groups for line in _lines(subject, group, "train", "budget", asked=True)]
    used = [line for group in groups for line in _lines(subject, group, "train", "budget_used")]
    label = f"Budget asked and used over student epochs, for {_names(used)}"
    svg = over_epochs("budget", label, _unit(groups), [*asked, *used], may_log=True)
    how = "Dotted: what was asked. Lines: what was used. A budget is held where its line stays at or below the dots."
    figures = [Figure(svg, "Budget asked and used", how, _legend(used))]
    for name, heading, unit, how in _HELP:
        lines = [line for group in groups for line in _lines(subject, group, "train", name)]
        if lines:
            label = f"{heading} over student epochs, for {_names(lines)}"
            svg = over_epochs(name, label, unit, lines, may_log=name == "helper_mean")
            figures.append(Figure(svg, heading, how, _legend(lines)))
    return Section("budget", "Budget: help asked and help used", [Note(_held(groups)), Figures(figures)])


_HELP = (
    ("price", "Price of help", "nats of KL per unit", "It rises while more help is used than asked for, else falls."),
    ("helper_mean", "Mean g", "g", "Help an example gets on average; 0 is none, 1 is all."),
    ("helped", "Share helped", "share of examples", "Examples with g above 0.001."),
)
"""Numbers of the log, with title, unit and explanation."""
_UNITS = {"ce": "mean g × CE, nats", "help": "mean g", "examples": "share helped"}


def _unit(groups: Sequence[Group]) -> str:
    """What the groups' budgets are counted in, if it is the same."""
    units = {group.chosen.config.method_options.get("budget_unit", "ce") for group in groups}
    return _UNITS[units.pop()] if len(units) == 1 else "help, each in its unit"


def _held(groups: Sequence[Group]) -> str:
    """The budget at the end of each group's chosen run, in words."""
    told = []
    for group in groups:
        end = (group.chosen.summary or {}).get("end") or _last_finite(group.chosen.student_lines)
        asked, used = end["budget"], end["budget_used"]
        told.append(f"{group.name} used {used:.3g} of {asked:.3g}, {_beside(used, asked)}")
    return f"At the end of training: {'; '.join(told)}."


def _beside(used: float, asked: float) -> str:
    """What was used beside what was asked, in words."""
    if used <= asked:
        return "within it"
    if asked == 0:
        return "over it"
    share = used / asked
    if share >= 2:
        return f"{share:.3g} times as much"
    return "over it by less than 1%" if share < 1.01 else f"over it by {share - 1:.0%}"


def _last_finite(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last line of a log with a budget; a run that diverged ends with one without numbers."""
    return next(
        (line for line in reversed(lines) if line["budget_used"] is not None), {"budget": 0.0, "budget_used": 0.0}
    )


def _series(subject: Subject, group: Group) -> Series:
    """The group's place in all figures; for one that only the budget's show, a place that is free there."""
    if group.name in subject.series:
        return subject.series[group.name]
    budgeted = [other for other in subject.candidates if _values(other.chosen, "train", "budget_used")][:MOST]
    taken = {subject.series[other.name].index for other in budgeted if other.name in subject.series}
    free = [index for index in range(MOST) if index not in taken]
    return Series(group.name, free[[other for other in budgeted if other.name not in subject.series].index(group)])


def _lines(subject: Subject, group: Group, kind: str, name: str, asked: bool = False) -> list[Line]:
    """The line of a group: over its seeds where they were logged at the same epochs, else of the chosen run."""
    series = _series(subject, group)
    all_seeds = [found for run in group.runs if (found := _values(run, kind, name))]
    if not all_seeds:
        return []
    x = [at for at, _ in all_seeds[0]]
    same = all([at for at, _ in found] == x for found in all_seeds)
    if not same:
        all_seeds = [_values(group.chosen, kind, name) or all_seeds[0]]
        x = [at for at, _ in all_seeds[0]]
    columns = list(zip(*([value for _, value in found] for found in all_seeds), strict=True))
    mean = [sum(column) / len(column) for column in columns]
    if len(all_seeds) == 1 or asked:
        return [Line(series, x, mean, asked=asked)]
    return [Line(series, x, mean, [min(column) for column in columns], [max(column) for column in columns])]


def _values(run: Run, kind: str, name: str) -> list[tuple[float, float]]:
    """Epochs and values of a number of the log, where it is there and finite."""
    if kind == "validation":
        found: list[dict[str, Any]] = [line for line in run.lines if line["kind"] == kind]
        return [(line["student_epochs"], line[name]) for line in found if line.get(name) is not None]
    names = ("ce_loss", "loss") if name == "loss" else (name,)
    pairs = ((line["epochs"], next((line[n] for n in names if n in line), None)) for line in run.student_lines)
    return [(at, value) for at, value in pairs if value is not None]


def _legend(lines: Sequence[Line]) -> list[Series]:
    series = _all(lines)
    return series if len(series) > 1 else []


def _all(lines: Sequence[Line]) -> list[Series]:
    return list(dict.fromkeys(line.series for line in lines))


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(series.name for series in _all(lines))
