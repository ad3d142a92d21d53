"""Exported files of the runs: accuracy against size and against latency, from their certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from disk_kd.export import read_certificates
from disk_kd.report.content import ReportContent
from disk_kd.report.drawing import MOST, Series, draw
from disk_kd.report.items import Figure, Figures, Item, Section, Table
from disk_kd.report.reading import Run

_NOTE = "Up and to the left is better. The teacher and the float student are those of the same certificate."


def shipped(content: ReportContent) -> Section | None:
    """Accuracy of exported files against their size and latency; None without certificates."""
    items: list[Item] = []
    for place, group in enumerate(content.finished):
        for run in group.runs:
            found = [each for each in read_certificates(run.folder / "export") if run.split in each["splits"]]
            if found:
                items += _of_run(f"{place}-{run.seed}", run, f"{group.name}, seed {run.seed}", found)
    return Section("shipped", "Exported files", items) if items else None


def _of_run(key: str, run: Run, name: str, certificates: Sequence[dict[str, Any]]) -> list[Item]:
    points = _points(run.split, certificates)
    shown = points[:MOST]
    series = [Series(label, place) for place, (label, *_) in enumerate(shown)]
    sizes = [(one, size / 2**20, top1) for one, (_, size, _, top1) in zip(series, shown, strict=True)]
    times = [(one, ms, top1) for one, (_, _, ms, top1) in zip(series, shown, strict=True) if ms is not None]
    figures = [
        Figure(_over(f"{key}-size", name, "size, MiB", sizes), f"Top-1 against size: {name}", _NOTE, series),
        Figure(
            _over(f"{key}-latency", name, "one image on one thread, ms", times),
            f"Top-1 against latency: {name}",
            _NOTE,
            [one for one, *_ in times],
        ),
    ]
    rows = [
        [label, f"{top1:.2f}", f"{size / 1024:,.0f}", "" if ms is None else f"{ms:.3f}"]
        for label, size, ms, top1 in points
    ]
    titles = ("file", f"top-1 % ({run.split})", "KiB", "one image, ms")
    hardware = certificates[0]["hardware"]
    return [Figures(figures), Table(f"Certificates of {name}. Latency on {hardware}, one thread.", titles, rows)]


def _points(split: str, certificates: Sequence[dict[str, Any]]) -> list[tuple[str, int, float | None, float]]:
    """Name, bytes, milliseconds for one image and top-1: the teacher, the float student, and each exported file."""
    points: dict[str, tuple[str, int, float | None, float]] = {}
    for each in certificates:
        times = {
            (row["model"], row["runtime"]): row["median_ms"]
            for row in each["latency"]
            if row["batch"] == 1 and row["threads"] == 1
        }
        parts = {"teacher": each["teacher"], "float": each["float"], "export": each}
        for (model, runtime), ms in sorted(times.items(), key=lambda item: list(parts).index(item[0][0])):
            part = parts[model]
            if part is None or split not in part["splits"]:
                continue
            label = f"{each['file']}, {each['precision']}" if model == "export" else _label(model, runtime)
            size = each["float_bytes"] or part["bytes"] if model == "float" else part["bytes"]
            points.setdefault(label, (label, size, ms, part["splits"][split]["top1"]))
    return list(points.values())


def _label(model: str, runtime: str) -> str:
    return f"{'float student' if model == 'float' else model} in {runtime}"


def _over(key: str, name: str, unit: str, points: Sequence[tuple[Series, float, float]]) -> Markup:
    """Top-1 over a cost, on a logarithmic axis."""

    def paint(axes: Axes) -> None:
        for series, cost, top1 in points:
            axes.scatter([cost], [top1], 60, color=series.color, marker=series.marker, alpha=0.9)
        axes.set_xscale("log")
        axes.margins(0.15)
        axes.set_xlabel(unit)
        axes.set_title("top-1, %", loc="left")

    values = "; ".join(f"{series.name} {top1:.2f}% at {cost:.3g}" for series, cost, top1 in points)
    return draw(f"shipped-{key}", f"Top-1 over {unit}, {name}: {values}", paint)
