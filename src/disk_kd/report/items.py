"""What a section of the report is made of; the template knows how each is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from disk_kd.report.drawing import Series


@dataclass(frozen=True)
class Note:
    """A line of text; with `missing` one that says why a part is left out."""

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
    """A drawing, what it shows, how to read it, and its legend."""

    svg: Markup
    title: str
    note: str = ""
    legend: Sequence[Series] = ()
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: what it tells.
        columns: titles.
        rows: cells by column.
        marked: the row to point out; None: none.
        folded: a title under which it is folded away; empty: it is in sight.
        words: columns of text, which are not set as numbers; the first always is text.
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
    """A sample of the gallery."""

    source: str
    alt: str
    lines: Sequence[tuple[str, str, bool]] = field(default_factory=tuple)
    """Name, value, and whether the value is at odds with the label."""


@dataclass(frozen=True)
class Gallery:
    """Pictures with what is said of them."""

    title: str
    pictures: Sequence[Picture]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Text:
    """Text as it stands in a file, folded away under its title."""

    title: str
    text: str
    kind: ClassVar[str] = "text"


Item = Note | Points | Figures | Table | Gallery | Text


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        id: for links.
        title: its heading.
        items: what it shows, in order.
    """

    id: str
    title: str
    items: Sequence[Item]
