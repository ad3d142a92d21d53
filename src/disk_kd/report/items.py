"""The parts of a section of the report. The template shows each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from disk_kd.report.drawing import Series


@dataclass(frozen=True)
class Note:
    """A line of text. With `missing` it says why a part is not shown."""

    text: str
    missing: bool = False
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Points:
    """A list of lines."""

    lines: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Figure:
    """A figure with its title, a note on how to read it, and its legend."""

    svg: Markup
    title: str
    note: str = ""
    legend: Sequence[Series] = ()
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Figures:
    """Figures, side by side if there is room."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: text above the table.
        columns: titles of the columns.
        rows: cells of each row, by column.
        marked: position of the highlighted row; None: no row is highlighted.
        folded: title under which the table is collapsed; empty: the table is visible.
        words: columns that hold text and not numbers. The first column always holds text.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: int | None = None
    folded: str = ""
    words: Sequence[str] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """An image of the gallery."""

    source: str
    alt: str
    lines: Sequence[tuple[str, str, bool]] = field(default_factory=tuple)
    """Name, value, and whether the value disagrees with the label."""


@dataclass(frozen=True)
class Gallery:
    """Images with their labels, predictions and help."""

    title: str
    pictures: Sequence[Picture]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Text:
    """Text of a file, collapsed under its title."""

    title: str
    text: str
    kind: ClassVar[str] = "text"


Item = Note | Points | Figures | Table | Gallery | Text


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        id: anchor for links.
        title: heading.
        items: parts in order.
    """

    id: str
    title: str
    items: Sequence[Item]
