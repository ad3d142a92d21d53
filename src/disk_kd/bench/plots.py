"""The figure of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from disk_kd.bench.cases import ALONE, TAUGHT
from disk_kd.bench.measure import Rate
from disk_kd.bench.sweeps import KEYS, KEYS_OF_SAMPLES, Point
from disk_kd.svg import figure_svg

LABELS = {"batch_size": "batch size (images)", "classes": "classes", "samples": "training images"}
"""Axis of each sweep."""
_NOT_BARS = ("helper", "store")
"""Cases left out of the figure: the helper alone is so fast that it would compress the scale."""


_COLOURS = {"one fixed batch": "tab:gray", "ours": "tab:blue", "another library": "tab:orange"}
_FIXED = ("bound", "bound_kept", "ceiling", "teacher")
"""Cases that are not epochs over the data."""


def svg(drawing: Figure) -> bytes:
    """The figure as an SVG with text as text."""
    return figure_svg(drawing, fonttype="none").encode()


def _whose(key: str) -> str:
    """The tool that a case belongs to; `_COLOURS` has a colour for each."""
    if key in _FIXED:
        return "one fixed batch"
    return "ours" if key in ALONE or key in TAUGHT else "another library"


def figure(rates: Sequence[Rate], points: Sequence[Point]) -> Figure:
    """Epochs as bars, and a panel of lines for each sweep."""
    sweeps = [name for name in LABELS if any(point.sweep == name for point in points)]
    bars = [rate for rate in rates if rate.key not in _NOT_BARS]
    heights = [1 + 0.3 * len(bars), *([4.5] if sweeps else [])]
    drawing = Figure(figsize=(12, sum(heights)), layout="constrained")
    above, *below = drawing.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _bars(above.subplots(), bars)
    for panels in below:
        each = panels.subplots(1, len(sweeps), squeeze=False)[0]
        for axes, name in zip(each, sweeps, strict=True):
            _lines(axes, name, [point for point in points if point.sweep == name])
        lines = {str(line.get_label()): line for axes in each for line in axes.get_lines()}
        panels.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    return drawing


def _bars(axes: Axes, rates: Sequence[Rate]) -> None:
    """Images per second, with a colour for each tool. Whiskers reach from the slowest to the fastest repetition."""
    names = [rate.title if rate.teacher is None else f"{rate.title} ({rate.teacher})" for rate in rates]
    medians = [rate.median for rate in rates]
    whiskers = [
        [rate.median - rate.low for rate in rates],
        [rate.high - rate.median for rate in rates],
    ]
    whose = [_whose(rate.key) for rate in rates]
    colours = [_COLOURS[each] for each in whose]
    bars = axes.barh(range(len(rates)), medians, xerr=whiskers, color=colours, ecolor="black", capsize=2)
    legend = dict(zip(whose, bars, strict=True))
    axes.legend(legend.values(), legend.keys(), loc="lower right", frameon=False)
    for place, rate in enumerate(rates):
        axes.annotate(f"{rate.median:,.0f}", (rate.high, place), (5, 0), textcoords="offset points", va="center")
    bound = next(rate.median for rate in rates if rate.key == "bound")
    axes.axvline(bound, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rates)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("images/s (dotted: the bound)")


def _lines(axes: Axes, name: str, points: Sequence[Point]) -> None:
    """Microseconds per image, a line for each case."""
    keys = dict.fromkeys((*KEYS, *KEYS_OF_SAMPLES))
    for place, key in enumerate(keys):
        line = [point for point in points if point.rate.key == key]
        if line:
            xs, ys = [point.rate.x for point in line], [point.us_per_image for point in line]
            axes.loglog(xs, ys, marker="o", color=f"C{place}", label=line[0].rate.title)
    values = sorted({point.rate.x for point in points})
    axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("µs per image")
    axes.grid(alpha=0.3)
