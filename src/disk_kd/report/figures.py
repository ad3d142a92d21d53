"""The figures of the report, from numbers to SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from disk_kd.report.drawing import MOST, MUTED, Series, draw
from disk_kd.report.measures import Bin

_MOST_POINTS = 120
_LEAST_SHARE = 1e-4
"""Share of the largest value at which a logarithmic axis ends."""
_LOG_FROM = 50
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """Values over epochs: mean over seeds, and minimum and maximum if there are several seeds."""

    series: Series
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    limit: bool = False
    """Whether it is the limit of other lines. Limits are drawn thin and dotted."""

    def thinned(self) -> Line:
        """At most `_MOST_POINTS` points, each the mean of its neighbours."""
        block = math.ceil(len(self.x) / _MOST_POINTS)
        if block <= 1:
            return self
        parts = (self.x, self.mean, self.low, self.high)
        x, mean, low, high = (
            [sum(p[i : i + block]) / len(p[i : i + block]) for i in range(0, len(p), block)] for p in parts
        )
        return Line(self.series, x, mean, low, high, self.limit)


def over_epochs(key: str, label: str, unit: str, lines: Sequence[Line], *, may_log: bool = False) -> Markup:
    """Lines over student epochs; a single point is a marker."""

    def paint(axes: Axes) -> None:
        for line in (line.thinned() for line in lines):
            style: dict[str, Any] = (
                {"linestyle": ":", "linewidth": 1.2} if line.limit else {"linestyle": line.series.dash}
            )
            if not line.limit:
                style |= marks(line.series, len(line.x))
            axes.plot(line.x, line.mean, color=line.series.color, **style)
            if line.low:
                axes.fill_between(line.x, line.low, line.high, color=line.series.color, alpha=0.15, linewidth=0)
        if may_log and _spans(lines):
            axes.set_yscale("log")
            greatest = max(max(line.high or line.mean) for line in lines)
            axes.set_ylim(max(axes.get_ylim()[0], _LEAST_SHARE * greatest), 1.5 * greatest)
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("student epochs")
        axes.set_title(unit, loc="left")

    return draw(key, label, paint)


def marks(series: Series, points: int) -> dict[str, Any]:
    """A few markers along a line. Their positions differ between series."""
    every = max(1, points // 6)
    first = (series.index or 0) * every // MOST
    return {"marker": series.marker, "markevery": (first, every), "markersize": 4.5}


def _spans(lines: Sequence[Line]) -> bool:
    values = [value for line in lines for value in line.mean if value > 0]
    return bool(values) and max(values) > _LOG_FROM * min(values)


def reliability_diagram(key: str, label: str, curves: Sequence[tuple[Series, Sequence[Bin]]]) -> Markup:
    """Accuracy over confidence. The area of a marker grows with the share of images in its bin."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=":")
        for series, bins in curves:
            x, y = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
            axes.plot(x, y, color=series.color, linestyle=series.dash, linewidth=1)
            axes.scatter(x, y, [8 + 160 * b.share for b in bins], color=series.color, marker=series.marker, alpha=0.8)
        axes.set_xlabel("confidence, %")
        axes.set_title("accuracy, %", loc="left")

    return draw(key, label, paint, height=3.4)


def risk_coverage_curve(key: str, label: str, curves: Sequence[tuple[Series, Sequence[float]]]) -> Markup:
    """Error rate among the most confident predictions."""

    def paint(axes: Axes) -> None:
        for series, risks in curves:
            count = len(risks)
            points = sorted({round(i * count / 200) for i in range(2, 201)} - {0})
            x, y = [100 * n / count for n in points], [100 * risks[n - 1] for n in points]
            axes.plot(x, y, color=series.color, linestyle=series.dash, **marks(series, len(x)))
        axes.set_xlabel("answered (most confident), %")
        axes.set_title("errors among answered, %", loc="left")
        axes.set_ylim(bottom=0)

    return draw(key, label, paint, height=3.4)


def class_accuracies(
    key: str, label: str, classes: Sequence[str], values: Sequence[tuple[Series, Sequence[float]]]
) -> Markup:
    """One row for each class, with a marker for the teacher and for each student, joined by a line."""

    def paint(axes: Axes) -> None:
        for place in range(len(classes)):
            there = [accuracies[place] for _, accuracies in values]
            axes.plot([min(there), max(there)], [place, place], color=MUTED, linewidth=1, zorder=1)
        for series, accuracies in values:
            looks: dict[str, Any] = {"color": series.color, "marker": series.marker, "zorder": 2}
            axes.scatter(accuracies, range(len(classes)), 42, clip_on=False, alpha=0.9, **looks)
        axes.set_yticks(range(len(classes)), [_cut(name) for name in classes])
        axes.invert_yaxis()
        axes.set_xlabel("accuracy, %")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    return draw(key, label, paint, height=0.75 + 0.24 * len(classes))


@dataclass(frozen=True)
class Seeds:
    """A row of a figure: the value of each seed, the mean, and half the width of its 95 % confidence interval."""

    series: Series
    values: Sequence[float]
    mean: float
    half: float | None


def seeds_and_intervals(key: str, label: str, unit: str, rows: Sequence[Seeds], *, zero: str = "") -> Markup:
    """One row for each method: a pale dot for each seed, the mean and its interval. `zero` names the line at 0."""

    def paint(axes: Axes) -> None:
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1, linestyle=":")
        for place, row in enumerate(rows):
            color, marker = row.series.color, row.series.marker
            axes.scatter(row.values, [place + 0.22] * len(row.values), 16, color=color, alpha=0.35, linewidth=0)
            if row.half is not None:
                axes.plot([row.mean - row.half, row.mean + row.half], [place, place], color=color, linewidth=2.2)
            axes.scatter([row.mean], [place], 42, color=color, marker=marker, zorder=3)
            axes.annotate(_mean_text(row, zero), (row.mean, place), (0, 6), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(rows)), [_cut(row.series.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.65)
        axes.margins(x=0.12)
        axes.set_xlabel(unit)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    return draw(key, label, paint, height=0.8 + 0.52 * len(rows))


def _mean_text(row: Seeds, zero: str) -> str:
    return f"{row.mean:+.1f}" if zero else f"{row.mean:.1f}"


def accuracy_over_cost(key: str, label: str, points: Sequence[tuple[Series, float, float]]) -> Markup:
    """Top-1 over multiply-adds, on a logarithmic axis."""

    def paint(axes: Axes) -> None:
        for series, cost, top1 in points:
            axes.scatter([cost], [top1], 60, color=series.color, marker=series.marker, alpha=0.9)
        axes.set_xscale("log")
        costs = [cost for _, cost, _ in points]
        axes.set_xlim(min(costs) / 2, max(costs) * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 30 * min(costs) else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.margins(y=0.15)
        axes.set_xlabel("multiply-adds for one image")
        axes.set_title("top-1, %", loc="left")

    return draw(key, label, paint)


def short_number(value: float) -> str:
    """With a suffix for thousands, millions or billions: 1,044,736 is 1.04 M."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"


def _cut(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
