"""Tables as text: CSV and Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_lines(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Rows as CSV; None is blank. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return f"'{value}"


def markdown_table(titles: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. The cells are already Markdown."""
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in body]


def as_markdown(text: str) -> str:
    """Text in one line with Markdown's special characters escaped."""
    return re.sub(r"([\\|\[\]<>`])", r"\\\1", " ".join(text.split()))
