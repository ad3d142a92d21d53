"""CSV and Parquet tables of images, and the rows that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disk_kd.config import RunConfig
from disk_kd.data import Dataset, load_dataset
from disk_kd.data.table_settings import TableSettings
from disk_kd.errors import DataError
from disk_kd.support import UNLABELLED


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/0.png … images/9.png, whose grey level is their number."""
    root = tmp_path_factory.mktemp("table")
    (root / "images").mkdir()
    for number in range(10):
        Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(root / "images" / f"{number}.png")
    return root


def written(folder: Path, rows: Sequence[str], name: str = "table.csv") -> Path:
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / name


def load(path: Path, **options: Any) -> Dataset:
    return load_dataset("table", root=path, **{"validation": 0.0} | options)


ROWS = ["path,label,split"] + [f"images/{n}.png,{(10, 9)[n % 2]},{'train' if n < 6 else 'test'}" for n in range(10)]


def test_numbers_are_classes_in_their_order_and_rows_are_samples_in_theirs(images: Path) -> None:
    found = load(written(images, ROWS))
    assert found.class_names == ("9", "10")
    assert found.train.targets.tolist() == [1, 0] * 3
    assert found.train.pictures(found.train.ids)[:, 0, 0, 0].tolist() == list(range(6))
    assert found.test is not None
    assert len(found.test) == 4


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_and_the_folder_of_the_images_may_be_named(images: Path, tmp_path: Path, separator: str) -> None:
    rows = [separator.join(("id", "where", "species"))]
    rows += [separator.join((str(n), f"{n}.png", f'"{("cat", "dog")[n % 2]}"')) for n in range(10)]
    columns = TableSettings(path="where", label="species", folder=images / "images")
    found = load(written(tmp_path, rows), table=columns)
    assert found.class_names == ("cat", "dog")
    assert found.train.targets.tolist() == [0, 1] * 5
    with pytest.raises(
        DataError, match=r"no column named path or .* for the path, it has id, where, species; give data"
    ):
        load(written(tmp_path, rows))
    with pytest.raises(DataError, match="has no column 'specie'; nearest: species"):
        load(written(tmp_path, rows), table=TableSettings(path="where", label="specie"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/11.png,9,train", r"table.csv row 12 names images/11.png, which is no file in"),
        ("images/3.png,,train", r"row 12 has no label for images/3.png; fill it, or give data.unlabelled=rest"),
        ("images/0.png,9,train", r"row 2 and row 12 give images/0.png two labels, '10' and '9'; keep one"),
        ("./images/0.png,10,test", r"row 2 and row 12 give ./images/0.png two splits, 'train' and 'test'; keep one"),
        (",9,train", "row 12 has no path in the column 'path'"),
        ("images/0.png,9", "row 12 has 2 columns, 3 are expected"),
        ("images/table.csv,9,holdout", "row 12 has the split 'holdout'; valid: train, training, val"),
        ("images/5.png,9,holdout", "row 12 give images/5.png two splits"),
    ],
)
def test_wrong_rows_are_named(images: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(written(images, [*ROWS, row]))


def test_labels_of_a_held_out_split_must_be_classes(images: Path) -> None:
    rows = [row.replace("images/9.png,9", "images/9.png,8") for row in ROWS]
    with pytest.raises(DataError, match="row 11 of the test split has the label '8', which no training row has"):
        load(written(images, rows))


def test_rows_without_a_label_are_unlabelled_images_on_demand(images: Path) -> None:
    rows = [ROWS[0], *(row.replace(",10,train", ",,train") if row.startswith("images/4") else row for row in ROWS[1:])]
    found = load(written(images, rows), unlabelled="rest")
    assert found.train.targets.tolist() == [1, 0, 1, 0, UNLABELLED, 0]
    with pytest.raises(DataError, match="row 6 has no label"):
        load(written(images, rows))


def test_repeated_rows_count_once(images: Path) -> None:
    with pytest.warns(UserWarning, match=r"rows that repeat an image \(1, such as .*row 12\)"):
        assert len(load(written(images, [*ROWS, ROWS[1]])).train) == 6


def test_what_is_no_table_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "notes.txt").write_text("path,label")
    for name, message in (
        ("empty.csv", "is empty; its first row must name the columns"),
        ("bytes.csv", "cannot be read: .*; write it as CSV in UTF-8"),
        ("notes.txt", "is expected to end in .csv, .tsv, .parquet"),
        ("none.csv", "there is no file data.root"),
    ):
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)


def test_parquet_holds_the_same_as_csv(images: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    header, *rows = (row.split(",") for row in ROWS)
    columns: dict[str, list[Any]] = {name: [row[at] for row in rows] for at, name in enumerate(header)}
    columns["label"] = [float(label) for label in columns["label"]]
    parquet.write_table(pyarrow.table(columns), images / "table.parquet")
    one, other = load(written(images, ROWS)), load(images / "table.parquet")
    assert one.fingerprint() == other.fingerprint()
    columns["path"][4] = "images/x.png"
    parquet.write_table(pyarrow.table(columns), images / "wrong.parquet")
    with pytest.raises(DataError, match=r"wrong.parquet row 5 names images/x.png, which is no file"):
        load(images / "wrong.parquet")


def test_a_table_can_be_streamed(images: Path) -> None:
    table = written(images, ROWS)
    one, other = (load(table, stream=stream, image_size=4, workers=0).train for stream in (False, True))
    assert one.pictures(one.ids).equal(other.pictures(other.ids))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"root": "photos"}, "folder"),
        ({"root": "x/labels.CSV"}, "table"),
        ({"root": "labels.parquet"}, "table"),
        ({"unlabelled": "photos"}, "none"),
        ({"unlabelled": "rest", "limit_train": 100}, "digits"),
        ({}, "digits"),
    ],
)
def test_paths_tell_the_dataset(options: dict[str, Any], name: str) -> None:
    assert RunConfig.from_tree({"data": options, "student": {"name": "cifar_resnet10_xxs"}}).data.name == name


@pytest.mark.parametrize(("row", "fault"), [("9,train", "two labels"), ("10,test", "two splits")])
def test_an_absolute_path_repeats_the_relative_one(images: Path, row: str, fault: str) -> None:
    with pytest.raises(DataError, match=rf"row 2 and row 12 give .*0\.png {fault}"):
        load(written(images, [*ROWS, f"{images}/images/0.png,{row}"]))


def test_whole_numbers_with_a_point_are_numbers(images: Path) -> None:
    """As pandas writes a column of numbers with empty cells."""
    rows = ["path,label", *(f"images/{n}.png,{(10, 9)[n % 2]}.0" for n in range(8)), "images/8.png,"]
    found = load(written(images, rows), unlabelled="rest")
    assert found.class_names == ("9", "10")
    assert found.train.targets.tolist() == [1, 0] * 4 + [UNLABELLED]
    rows = ["path,label", *(f"images/{n}.png,{(10, 9)[n % 2]}.5" for n in range(8))]
    assert load(written(images, rows)).class_names == ("10.5", "9.5"), "other numbers are names"
