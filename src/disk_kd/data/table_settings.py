"""Settings of tables of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TableSettings:
    """Columns of a table of images. null finds a column by its usual names.

    Attributes:
        path: Name of the column of paths. The usual names are path, file, filename and image.
        label: Name of the column of labels. The usual names are label, class, target and category.
        split: Name of the column of splits, whose values are train, val and test. The usual names are split and
            subset. Without such a column all rows are training images.
        folder: Folder that relative paths start from. null starts from the folder of the table.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None
    folder: Path | None = None
