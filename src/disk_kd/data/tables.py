"""Tables of images: CSV, TSV and Parquet files with a column of paths, one of labels, and optionally one of splits."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from disk_kd.data.folders import SPELLINGS, FolderFiles
from disk_kd.data.samples import Parts, Samples
from disk_kd.data.table_settings import TableSettings
from disk_kd.errors import DataError, nearest, shown
from disk_kd.support import UNLABELLED

TABLES = (".csv", ".tsv", ".parquet")
"""Endings of tables."""
PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABELS = ("label", "class", "target", "category")
SPLITS = ("split", "subset")
_SEPARATORS = (",", ";", "\t")
_WHOLE = re.compile(r"-?\d+(\.0)?")


class _Row(NamedTuple):
    """A row of a table. `where` names it in messages."""

    where: str
    path: str
    label: str
    split: str


def table_parts(file: Path, settings: TableSettings, *, unlabelled: bool = False, skip_missing: bool = False) -> Parts:
    """The splits of a table. Without a column of splits all rows are training samples.

    Args:
        file: the table.
        settings: its columns, and the folder of its paths.
        unlabelled: a row may have an empty label: it is an image without a label.
        skip_missing: a file that does not exist is left to the decoder, which skips it with a warning.

    Raises:
        DataError: the table or a column is missing, or a row is wrong. The message names the row.
    """
    rows, folder = _whole_labels(list(_rows(file, settings, labelled=True))), _folder(file, settings)
    named = [row for row in rows if row.label]
    if not unlabelled and (empty := next((row for row in rows if not row.label), None)):
        raise DataError(
            f"{empty.where} has no label for {shown(empty.path)}; fill it, or give data.unlabelled=rest to take rows"
            " without a label as unlabelled images"
        )
    if not named:
        raise DataError(f"{file} has no row with a label")
    by_split: dict[str, list[_Row]] = {}
    for row in _distinct(rows, folder):
        by_split.setdefault(_split_of(row), []).append(row)
    if "train" not in by_split:
        raise DataError(f"{file} has no row of the train split; it has {', '.join(by_split)}")
    held_out = [row for split in ("validation", "test") for row in by_split.get(split, ())]
    if empty := next((row for row in held_out if not row.label), None):
        raise DataError(f"{empty.where} has no label for {shown(empty.path)}, which is held out; fill it, or remove it")
    if not skip_missing:
        _check_files(folder, rows)
    classes = class_order({row.label for row in by_split["train"]} - {""})
    parts = {split: _samples(folder, found, classes, split) for split, found in by_split.items()}
    return Parts(parts["train"], parts.get("validation"), parts.get("test"))


def unlabelled_table_samples(file: Path, settings: TableSettings, skip_missing: bool = False) -> Samples:
    """All images of a table, without labels. Columns of labels and splits are not read.

    Raises:
        DataError: the table or its column of paths is missing, a row is wrong, or there is no row.
    """
    folder = _folder(file, settings)
    rows = _distinct(list(_rows(file, settings, labelled=False)), folder)
    if not rows:
        raise DataError(f"{file} is expected to hold rows of images, it holds none")
    if not skip_missing:
        _check_files(folder, rows)
    return _samples(folder, rows, (), "unlabelled")


def class_order(labels: set[str]) -> tuple[str, ...]:
    """Class names in label order: by their number if all are whole numbers, else by the alphabet."""
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _rows(file: Path, settings: TableSettings, labelled: bool) -> Iterator[_Row]:
    """The rows of a table, in its order."""
    header, records = _parquet(file) if file.suffix.lower() == ".parquet" else _text(file)
    path = _column(file, header, "path", settings.path, PATHS)
    label = _column(file, header, "label", settings.label, LABELS) if labelled else None
    wanted = settings.split or next((name for name in header if name.lower() in SPLITS), None)
    split = None if wanted is None or not labelled else _column(file, header, "split", wanted, SPLITS)
    for where, record in records:
        if len(record) != len(header):
            raise DataError(f"{where} has {len(record)} columns, {len(header)} are expected as in the header")
        if not _cell(record[path]):
            raise DataError(f"{where} has no path in the column {header[path]!r}; fill it, or remove the row")
        yield _Row(
            where,
            _cell(record[path]),
            "" if label is None else _cell(record[label]),
            "train" if split is None else _cell(record[split]),
        )


def _column(file: Path, header: Sequence[str], kind: str, given: str | None, usual: Sequence[str]) -> int:
    """The place of a column: the one that was given, else the only one with a usual name."""
    lower = [name.lower() for name in header]
    if given is not None:
        if given not in header:
            raise DataError(f"{file} has no column {given!r}; {nearest(given, header)}")
        return list(header).index(given)
    found = [place for place, name in enumerate(lower) if name in usual]
    if len(found) != 1:
        held = ", ".join(map(shown, header[:8]))
        problem = "no column" if not found else "several columns"
        raise DataError(
            f"{file} has {problem} named {' or '.join(usual)} for the {kind}, it has {held}; give data.table.{kind}"
        )
    return found[0]


def _text(file: Path) -> tuple[list[str], Iterator[tuple[str, list[Any]]]]:
    """Header and rows of a CSV or TSV file, with the number of each row as a spreadsheet counts it."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            first = opened.readline()
            separator = max(_SEPARATORS, key=first.count)
            opened.seek(0)
            found = list(enumerate(csv.reader(opened, delimiter=separator, strict=True), start=1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the table {file} cannot be read: {reason}; write it as CSV in UTF-8") from error
    if not found or not any(found[0][1]):
        raise DataError(f"the table {file} is empty; its first row must name the columns")
    header = [name.strip() for name in found[0][1]]
    return header, ((f"{file} row {number}", row) for number, row in found[1:] if any(row))


def _parquet(file: Path) -> tuple[list[str], Iterator[tuple[str, list[Any]]]]:
    """Columns and rows of a Parquet file. The first row is row 1."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{file} needs the package pyarrow: pip install 'disk-kd[parquet]'") from error
    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise DataError(f"the table {file} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    columns = [table.column(name).to_pylist() for name in table.column_names]
    rows = ((f"{file} row {number}", list(row)) for number, row in enumerate(zip(*columns, strict=True), start=1))
    return list(table.column_names), rows


def _cell(value: Any) -> str:
    """A cell as text; "" for one without a value. Whole numbers have no decimal point."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _split_of(row: _Row) -> str:
    for split, spellings in SPELLINGS.items():
        if row.split.lower() in spellings:
            return split
    valid = ", ".join(spelling for spellings in SPELLINGS.values() for spelling in spellings)
    raise DataError(f"{row.where} has the split {row.split!r}; valid: {valid}")


def _whole_labels(rows: list[_Row]) -> list[_Row]:
    """The rows with labels such as 2 for 2.0, which pandas writes if a column of numbers has empty cells."""
    labels = {row.label for row in rows} - {""}
    if not all(_WHOLE.fullmatch(label) for label in labels):
        return rows
    return [row._replace(label=row.label.partition(".")[0]) for row in rows]


def _distinct(rows: Sequence[_Row], folder: Path) -> list[_Row]:
    """The rows without repetitions of an image, whether its path is relative to `folder` or absolute.

    Raises:
        DataError: an image has two labels or is in two splits.
    """
    seen: dict[str, _Row] = {}
    repeated: list[_Row] = []
    for row in rows:
        first = seen.setdefault(os.path.abspath(os.path.join(folder, row.path)), row)
        if first is row:
            continue
        for what, one, two in (("labels", first.label, row.label), ("splits", first.split, row.split)):
            if one != two:
                raise DataError(
                    f"{first.where} and row {row.where.rpartition(' row ')[2]} give {shown(row.path)} two {what},"
                    f" {one or 'none'!r} and {two or 'none'!r}; keep one"
                )
        repeated.append(row)
    if repeated:
        warnings.warn(
            f"left out: rows that repeat an image ({len(repeated)}, such as {repeated[0].where})", stacklevel=3
        )
    return list(seen.values())


def _folder(file: Path, settings: TableSettings) -> Path:
    """The folder that relative paths start from."""
    if settings.folder is None:
        return file.parent
    folder = Path(settings.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder data.table.folder {folder}")
    return folder


def _check_files(folder: Path, rows: Sequence[_Row]) -> None:
    for row in rows:
        if not os.path.isfile(os.path.join(folder, row.path)):
            raise DataError(
                f"{row.where} names {shown(row.path)}, which is no file in {folder}; correct it, or give"
                " data.table.folder, the folder of the images"
            )


def _samples(folder: Path, rows: Sequence[_Row], classes: tuple[str, ...], split: str) -> Samples:
    number = {name: label for label, name in enumerate(classes)}
    if other := next((row for row in rows if row.label and row.label not in number), None):
        raise DataError(
            f"{other.where} of the {split} split has the label {shown(other.label)!r}, which no training row has"
        )
    targets = torch.tensor([number.get(row.label, UNLABELLED) for row in rows])
    paths = tuple(shown(os.path.join(folder, row.path)) for row in rows)
    return Samples(classes, targets, FolderFiles(folder, tuple(row.path for row in rows)), paths)
