"""Figures as SVG files for light and dark pages."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_DARK = "@media screen and (prefers-color-scheme: dark) { #figure_1 { filter: invert(1) hue-rotate(180deg) } }"
"""Black becomes white and hues stay; print is unchanged."""


def figure_svg(figure: Figure, **style: Any) -> str:
    """The figure on a transparent background. Its lightness is inverted if the reader uses a dark theme.

    The same figure gives the same text.

    Args:
        figure: figure in dark colours, as for white paper.
        style: matplotlib settings of SVG, without the prefix "svg.": `fonttype="none"` keeps text as text.
    """
    file = BytesIO()
    settings: Any = {"svg.hashsalt": "disk-kd", **{f"svg.{name}": value for name, value in style.items()}}
    with rc_context(settings):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue().decode().replace("fill: #ffffff", "fill: none")
    start = text.index(">", text.index("<svg")) + 1
    return f"{text[:start]}\n <style>{_DARK}</style>{text[start:]}"
