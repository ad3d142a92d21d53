"""The picture of a search: what each setting reached, and what mattered."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from disk_kd.files import write_text
from disk_kd.tuning.importance import Importances
from disk_kd.tuning.search import Search

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "disk-kd", "text.parse_math": False, "font.size": 9}
_TRIED, _FULL = "#9a9a9a", "#0072b2"


def picture(path: Path, searches: Sequence[Search], found: Importances) -> tuple[Path, ...]:
    """Write the picture as SVG. Above: the validation accuracy of all settings; below: the importances, if there are
    enough settings for any.
    """
    with rc_context(_STYLE):
        rows = -(-len(found) // 2)
        drawing = Figure(figsize=(9, 1.2 + 0.4 * len(searches) + 2.2 * rows), layout="constrained")
        FigureCanvasSVG(drawing)
        above, *below = drawing.subfigures(1 + bool(found), 1, squeeze=False)[:, 0]
        _accuracies(above.subplots(), searches)
        for part in below:
            panels = list(part.subplots(rows, 2, squeeze=False).flat)
            for axes, (name, shares) in zip(panels, found.items(), strict=False):
                _bars(axes, name, shares)
            for axes in panels[len(found) :]:
                axes.set_axis_off()
        file = BytesIO()
        drawing.savefig(file, format="svg", metadata={"Date": None})
    write_text(path, file.getvalue().decode())
    return (path,)


def _accuracies(axes: Axes, searches: Sequence[Search]) -> None:
    """A row of dots for each method: short runs grey, full runs in colour."""
    for row, search in enumerate(searches):
        for epochs in search.lengths:
            values = [top1 for one in search.tried if (top1 := one.top1(epochs)) is not None]
            full = epochs == search.lengths[-1]
            label = f"{epochs} epochs" if row == 0 else None
            axes.plot(values, [row] * len(values), "o" if full else ".", color=_FULL if full else _TRIED, label=label)
    axes.set_yticks(range(len(searches)), [search.candidate.name for search in searches])
    axes.set_ylim(len(searches) - 0.5, -0.5)
    axes.set_xlabel("validation top-1, %")
    axes.legend(frameon=False, fontsize="small")


def _bars(axes: Axes, name: str, shares: dict[str, float]) -> None:
    """The share of each option in the variance of the accuracy."""
    axes.barh(range(len(shares)), list(shares.values()), color=_FULL)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(f"{name}: what mattered", fontsize="medium")
