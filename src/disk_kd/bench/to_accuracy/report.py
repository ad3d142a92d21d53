"""Tables and figure of the time to an accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from disk_kd.bench.report import csv_text
from disk_kd.bench.to_accuracy.curves import Curve, Duel, duels
from disk_kd.tables import markdown_table

__all__ = ["Outcome", "csv_rows", "csv_text", "figure", "markdown", "tables"]

INK = "#444444"
"""Of text and axes, for white paper: on a dark page the figure turns its lightness over."""
COLOURS = ("#d55e00", "#e69f00", "#cc79a7", "#7f7f7f", "#56b4e9", "#1f8fff", "#33b58f", "#00a05a")
"""Okabe and Ito's, the light ones a little darker."""

LEGEND = (
    "Seconds of wall clock from the raw images and a trained teacher on. Counted are reading the images, building the"
    " models, compiling (with an empty cache), making the store of teacher outputs, and training. Not counted, for all"
    " alike: starting Python, evaluation, and keeping the state that a stopped measurement goes on from. Each"
    " contestant has a process of its own; they take turns, an epoch each, with the same number of threads. An accuracy"
    " is reached at the end of the first epoch that has it on validation. A peer's final accuracy is the one after its"
    " last epoch; its seconds are those of its first epoch that has it. The other tools run as their users run them:"
    " eager, contiguous, float32, with worker processes that augment single images. Test was read once, after the last"
    " epoch."
)


@dataclass(frozen=True)
class Outcome:
    """The results of a measurement.

    Attributes:
        curves: curves of the contestants.
        targets: validation top-1 accuracies in percent.
        facts: hardware, versions and settings.
    """

    curves: Sequence[Curve]
    targets: Sequence[float]
    facts: Mapping[str, Any]

    @property
    def title(self) -> str:
        """A one-line title."""
        facts = self.facts
        teacher = f" from {facts['teacher']}" if facts["teacher"] else ""
        where = f"{facts['hardware']}, {facts['threads']} threads"
        return f"Time to accuracy: {facts['student']}{teacher} on {facts['data']}; {where}"


def csv_rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A row for each contestant and epoch."""
    return [
        {
            "contestant": curve.name,
            "title": curve.title,
            "prepare_s": round(curve.prepare_s, 3),
            "epoch": point.epoch,
            "images": point.images,
            "seconds": round(point.seconds, 3),
            "validation_top1": round(point.top1, 3),
        }
        for curve in curves
        for point in curve.points
    ]


def tables(outcome: Outcome) -> list[Table]:
    """Tables for a terminal."""
    made = []
    for title, (heads, body) in zip((outcome.title, None), (_contestants(outcome), _duels(outcome)), strict=True):
        table = Table(*heads, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in table.columns[1:]:
            column.justify = "right"
        for cells in body:
            table.add_row(*cells)
        if body:
            made.append(table)
    return made


def markdown(outcome: Outcome) -> str:
    """Tables, settings, and how time is counted."""
    facts = outcome.facts
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    parts = [f"# {outcome.title}", "", f"{versions}; {facts['git_revision']}; recipe {facts['recipe']}", ""]
    parts += [*markdown_table(*_contestants(outcome)), ""]
    heads, body = _duels(outcome)
    if body:
        parts += [*markdown_table(heads, body), ""]
    parts += [LEGEND, "", *markdown_table(*_settings(facts["contestants"], outcome.curves))]
    return "\n".join(parts) + "\n"


def figure(outcome: Outcome) -> Figure:
    """Validation top-1 over time, on a transparent background."""
    drawing = Figure(figsize=(9, 5), layout="constrained", facecolor="none")
    axes = drawing.subplots()
    axes.set_facecolor("none")
    for curve, colour in zip(outcome.curves, _repeated(COLOURS, len(outcome.curves)), strict=True):
        minutes = [point.seconds / 60 for point in curve.points]
        style = "--" if curve.is_peer else "-"
        axes.plot(minutes, [point.top1 for point in curve.points], style, color=colour, label=curve.title)
        axes.plot(minutes[-1:], [curve.final_top1], "o", color=colour, markersize=4)
    for target in outcome.targets:
        axes.axhline(target, color=INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("minutes of wall clock, from the raw images and a trained teacher on", color=INK)
    axes.set_ylabel("validation top-1 (%)", color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(color=INK, alpha=0.25)
    axes.legend(frameon=False, labelcolor=INK, fontsize="small")
    return drawing


def _repeated(colours: Sequence[str], count: int) -> list[str]:
    return [colours[place % len(colours)] for place in range(count)]


def _contestants(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what each contestant reached, and when."""
    heads = ["contestant", "epochs", "validation top-1 %", "test top-1 %", "prepared s", "s an epoch", "s in all"]
    heads += [f"s to {target:g} %" for target in outcome.targets]
    body = []
    for curve in outcome.curves:
        starts = [curve.prepare_s, *(point.seconds for point in curve.points)]
        each = [after - before for before, after in pairwise(starts)]
        cells = [
            curve.title,
            str(len(curve.points)),
            f"{curve.final_top1:.2f}",
            "" if curve.test_top1 is None else f"{curve.test_top1:.2f}",
            f"{curve.prepare_s:,.1f}",
            f"{statistics.median(each):,.1f}",
            f"{curve.seconds:,.0f}",
        ]
        body.append(cells + [_seconds(curve.seconds_to(target)) for target in outcome.targets])
    return heads, body


def _duels(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each of ours against each peer's final accuracy."""
    heads = ["contestant", "reaches the final accuracy of", "%", "after s", "the peer after s", "times sooner"]
    return heads, [_duel(duel) for duel in duels(outcome.curves)]


def _duel(duel: Duel) -> list[str]:
    ratio = "" if duel.ratio is None else f"{duel.ratio:.2f}"
    return [duel.ours, duel.peer, f"{duel.top1:.2f}", _seconds(duel.ours_s), f"{duel.peer_s:,.0f}", ratio]


def _seconds(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:,.0f}"


def _settings(options: Mapping[str, Mapping[str, Any]], curves: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how each contestant trains."""
    shown = ["epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "warmup", "views", "seed"]
    heads = ["contestant", *shown, "method"]
    body = []
    for curve in curves:
        mine = options[curve.name]
        weights = [f"{key} {value}" for key, value in mine["method_options"].items() if key in _OF_METHOD]
        method = ", ".join([str(mine["method"]), *weights])
        body.append([curve.title, *("new each epoch" if mine[k] is None else str(mine[k]) for k in shown), method])
    return heads, body


_OF_METHOD = ("temperature", "student_temperature", "kd_weight", "ce_weight", "budget")
