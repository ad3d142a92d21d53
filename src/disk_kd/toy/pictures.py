"""The figures of the toy problems. Their light colours differ in black and white print too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from disk_kd.files import replacing

_LOSS = LinearSegmentedColormap.from_list("loss", ["#78afd3", "#b5d4e9", "#e4eff7", "#fdfcf6"])
_CLASSES = ListedColormap(["#cfe3f2", "#f8e3bd", "#dcefd5"])
_LEVELS = ListedColormap(["#5a5a5a", "#858585", "#a8a8a8", "#cdbf9c", "#c3dcee", "#f4f9fd"])


def save(drawing: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg, each completely or not at all."""
    with replacing(stem.with_suffix(".png")) as path:
        drawing.set_dpi(130)
        FigureCanvasAgg(drawing).print_png(path)
    # A fixed salt and no date: the same numbers give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "toy"}), replacing(stem.with_suffix(".svg")) as path:
        FigureCanvasSVG(drawing).print_svg(path, metadata={"Date": None})


def intervals_figure(result: dict[str, Any], surfaces: dict[str, Any]) -> Figure:
    """One panel for each loss: its surface over (a, w), and its minima with their accuracy."""
    rows = math.ceil(len(result["forms"]) / 4)
    drawing = Figure(figsize=(15, 0.7 + 3.6 * rows), layout="constrained")
    panels = drawing.subplots(rows, 4, sharex=True, sharey=True, squeeze=False)
    for axes, form in zip(panels.flat, result["forms"], strict=False):
        _surface(axes, surfaces["a"], surfaces["w"], surfaces[form["title"]])
        for minimum in form["minima"]:
            share = minimum["starts"] / result["starts"]
            _mark(axes, minimum["a"], minimum["w"], f"{minimum['accuracy']:.0%}", f"{share:.0%} of starts")
        axes.set_title(form["title"], fontsize=11)
    for axes in panels[-1]:
        axes.set_xlabel("a, the interval's start")
    for axes in panels[:, 0]:
        axes.set_ylabel("w, its width")
    drawing.suptitle("Loss of a student of one interval; circles: minima with their accuracy. Darker is lower.")
    return drawing


def gaussians_figure(result: dict[str, Any], surfaces: dict[str, Any]) -> Figure:
    """The data, the accuracies at the ends, and one panel for each loss on the plane through three minima of KD."""
    first, corners = result["students"][0], surfaces["corners"]
    drawn = [form["title"] for form in first["forms"] if form["title"] in surfaces]
    rows = math.ceil(len(drawn) / 3)
    drawing = Figure(figsize=(13, 5.5 + 4.5 * rows), layout="constrained")
    above, below = drawing.subfigures(2, 1, height_ratios=(5, 0.5 + 4.5 * rows), squeeze=False)[:, 0]
    data, *bars = above.subplots(1, 3, width_ratios=(1, 0.85, 0.85))
    _data(data, surfaces)
    for axes, student in zip(bars, result["students"], strict=True):
        _bars(axes, student, result["starts"])
    bars[1].set_yticks([])
    above.legend(*bars[0].get_legend_handles_labels(), loc="outside lower right", ncols=6, title="accuracy at the end")
    panels = below.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    for axes, title in zip(panels.flat, drawn, strict=False):
        _surface(axes, surfaces["u"], surfaces["v"], surfaces[title])
        for (u, v), accuracy in zip(((0, 0), (1, 0), (0, 1)), corners, strict=True):
            _mark(axes, u, v, f"{accuracy:.0%}")
        axes.set_title(title, fontsize=11)
    below.supxlabel(f"towards KD's {corners[1]:.0%} minimum")
    below.supylabel(f"towards KD's {corners[2]:.0%} minimum")
    below.suptitle(
        f"Loss with {first['hidden']} hidden units on the plane through three minima of KD, marked with their accuracy."
        " Darker is lower."
    )
    return drawing


def _surface(axes: Axes, across: Sequence[float], up: Sequence[float], losses: Sequence[Sequence[float]]) -> None:
    """Filled contours at equal shares of the area, so that both flat and steep surfaces show."""
    values = np.asarray(losses).T
    levels = np.unique(np.quantile(values, np.linspace(0, 1, 22)))
    axes.contourf(across, up, values, levels=levels, cmap=_LOSS)
    axes.contour(across, up, values, levels=levels, colors="#888888", linewidths=0.5, linestyles="solid")


def _mark(axes: Axes, x: float, y: float, text: str, below: str = "") -> None:
    """A ring with the accuracy, and a smaller second line."""
    axes.plot(x, y, "o", markersize=8, markerfacecolor="white", markeredgecolor="black", markeredgewidth=1.8)
    lines = [axes.annotate(text, (x, y), (8, 4), textcoords="offset points", fontsize=12, fontweight="bold")]
    if below:
        lines.append(axes.annotate(below, (x, y), (8, -8), textcoords="offset points", fontsize=9))
    for line in lines:
        line.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _data(axes: Axes, surfaces: dict[str, Any]) -> None:
    """The clusters over the teacher's regions."""
    teacher, examples = surfaces["teacher"], surfaces["examples"]
    extent = (teacher["x"][0], teacher["x"][-1], teacher["y"][0], teacher["y"][-1])
    axes.imshow(np.asarray(teacher["class"]).T, cmap=_CLASSES, origin="lower", extent=extent, aspect="auto")
    places, classes = np.asarray(examples["x"]), np.asarray(examples["class"])
    for label, (name, marker) in enumerate(zip("ABC", "o^s", strict=True)):
        shown = places[classes == label]
        across, up = shown.T
        axes.plot(across, up, marker, markersize=4.5, markerfacecolor="white", markeredgecolor="black", label=name)
    axes.set_title("examples and the teacher's classes", fontsize=11)
    axes.set_xlabel("$x_1$")
    axes.set_ylabel("$x_2$")
    axes.legend(loc="upper right", fontsize=9)


def _bars(axes: Axes, student: dict[str, Any], starts: int) -> None:
    """The fraction of starts at each accuracy: a bar for each loss, and one for KD from its ends."""
    rows = {form["title"]: form["share_by_level"] for form in student["forms"]}
    rows |= {f"{form['title']}, then KD": form["then_kd"]["share_by_level"] for form in student["forms"][1:]}
    left = np.zeros(len(rows))
    for place, level in enumerate(student["forms"][0]["share_by_level"]):
        widths = np.array([100 * shares[level] for shares in rows.values()])
        label = f"{level}%" if place else f"≤{level}%"
        axes.barh(list(rows), widths, left=left, color=_LEVELS(place), edgecolor="black", linewidth=0.6, label=label)
        left += widths
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of {starts} starts")
    axes.set_title(f"{student['hidden']} hidden units", fontsize=11)
