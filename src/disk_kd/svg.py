"""Figures as SVG files that can be read on a light and on a dark page."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_DARK = "@media screen and (prefers-color-scheme: dark) { #figure_1 { filter: invert(1) hue-rotate(180deg) } }"
"""Black becomes white and every hue stays; on paper nothing changes."""


def figure_svg(figure: Figure, **style: Any) -> str:
    """The figure on a transparent ground, which turns its lightness over where the reader's setting is dark.

    The same figure gives the same text.

    Args:
        figure: drawn in dark colours, as for white paper.
        style: matplotlib's settings of SVG, without their "svg.": `fonttype="none"` keeps text as text.
    """
    file = BytesIO()
    settings: Any = {"svg.hashsalt": "disk-kd", **{f"svg.{name}": value for name, value in style.items()}}
    with rc_context(settings):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue().decode().replace("fill: #ffffff", "fill: none")
    start = text.index(">", text.index("<svg")) + 1
    return f"{text[:start]}\n <style>{_DARK}</style>{text[start:]}"
