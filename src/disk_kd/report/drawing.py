"""Figures as SVG in the colours and font of the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

TEXT, GRID, MUTED = "#000001", "#000002", "#000003"
_SERIES = "#0001"
_CSS = {TEXT: "currentColor", GRID: "var(--grid)", MUTED: "var(--muted)"}
"""Placeholder colours that matplotlib draws with, and the CSS that replaces them."""
MOST = 8
"""Maximum number of series that can be distinguished in one figure."""
_MARKERS = "os^DvPX*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_CSS_DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
_STYLE: Any = {
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",
    "svg.hashsalt": "disk-kd",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "grid.color": GRID,
    "axes.edgecolor": MUTED,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
}


@dataclass(frozen=True)
class Series:
    """A series of a figure: its name, and its index, which gives colour, dash and marker.

    Attributes:
        name: for the legend.
        index: from 0 to `MOST` - 1; None for the teacher, and for what has no place in the figures, in the colour of
            the text.
    """

    name: str
    index: int | None

    @property
    def color(self) -> str:
        """For matplotlib."""
        return TEXT if self.index is None else f"{_SERIES}{self.index:02x}"

    @property
    def marker(self) -> str:
        """For matplotlib."""
        return "h" if self.index is None else _MARKERS[self.index]

    @property
    def dash(self) -> Any:
        """For matplotlib."""
        return _DASHES[1 if self.index is None else self.index % 4]

    def swatch(self) -> Markup:
        """A sample of its line with its marker, for the legend in HTML."""
        color = "currentColor" if self.index is None else f"var(--s{self.index})"
        dash = _CSS_DASHES[1 if self.index is None else self.index % 4]
        return Markup(
            f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><path d="M1 6H27" fill="none"'
            f' stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/><path d="{_marker_path(self.marker)}"'
            f' fill="{color}"/></svg>'
        )


def _marker_path(marker: str) -> str:
    """The marker as SVG path commands, 9 units wide, in the centre of a swatch."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    commands = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in path.iter_segments():
        pairs = points.reshape(-1, 2)
        where = "" if code == Path.CLOSEPOLY else " ".join(f"{14 + 9 * x:.2f} {6 - 9 * y:.2f}" for x, y in pairs)
        parts.append(commands[code] + where)
    return "".join(parts)


def draw(key: str, label: str, paint: Callable[[Axes], None], *, height: float = 2.9) -> Markup:
    """A figure of one panel.

    Args:
        key: tells its ids from those of other figures of the page.
        label: what it shows, for those who do not see it.
        paint: draws into the axes.
        height: in inches; the width is 4.4.

    Returns:
        An `<svg>` as wide as the place that it is put into.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        paint(figure.add_subplot())
        file = BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return Markup(_for_page(file.getvalue().decode(), key, label))


def _rounded(tag: re.Match[str]) -> str:
    """The element with coordinates of two decimals, which is finer than any screen."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])


def _for_page(svg: str, key: str, label: str) -> str:
    """The SVG element with unique ids and the page's colours and font."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style).*?</\1>\s*", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    opening = f'<svg class="figure" viewBox="{box[1]}" role="img" aria-label="{escape(label)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'(\bid="|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{key}-', svg)
    svg = re.sub(r" font-family: [^;]+;", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"<(?:path|use|text|rect)[^>]*>", _rounded, svg)
    svg = re.sub(rf"{_SERIES}(\w\w)", lambda found: f"var(--s{int(found[1], 16)})", svg)
    for stand_in, value in _CSS.items():
        svg = svg.replace(stand_in, value)
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", ">\n<")
