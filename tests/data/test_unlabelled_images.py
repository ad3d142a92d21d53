"""Images without labels as data: where they come from, which are taken, and how batches mix them with others."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from disk_kd.data import Dataset, Loader, Split, load_dataset
from disk_kd.data.order import SharedOrder
from disk_kd.errors import ConfigError, DataError
from disk_kd.support import UNLABELLED


def write_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders `photos`, and `more`, images at several depths."""
    root = tmp_path_factory.mktemp("unlabelled")
    for split, start in (("train", 0), ("test", 100)):
        for number in range(10):
            write_noise(root / "photos" / split / ("cat", "dog")[number % 2] / f"{number}.png", start + number)
    for number, name in enumerate(("b/c/2.png", "a.png", "b/1.png", "z/y/x/w.bmp")):
        write_noise(root / "more" / name, 200 + number)
    return root


def load(photos: Path, **options: Any) -> Dataset:
    return load_dataset("folder", root=photos / "photos", **options)


def test_all_images_of_a_folder_come_after_the_labelled_ones(photos: Path) -> None:
    labelled, both = load(photos), load(photos, unlabelled=str(photos / "more"))
    count = len(labelled.train)
    assert both.train.targets.tolist() == labelled.train.targets.tolist() + [UNLABELLED] * 4
    assert torch.equal(both.train.ids[:count], labelled.train.ids)
    assert both.train.ids[count:].tolist() == [10, 11, 12, 13]
    assert [Path(path).name for path in (both.train.paths or ())[count:]] == ["a.png", "1.png", "2.png", "w.bmp"]
    assert both.train.unlabelled == 4
    assert both.validation is not None
    assert labelled.validation is not None
    assert both.validation.fingerprint() == labelled.validation.fingerprint()
    assert both.train.image_fingerprint() != labelled.train.image_fingerprint()


def test_a_tar_a_folder_of_tars_and_a_table_hold_the_same_images(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "more.tar", "w") as tar:
        tar.add(photos / "more", "")
    names = sorted(str(path.relative_to(photos)) for path in (photos / "more").rglob("*.*") if path.is_file())
    (tmp_path / "more.csv").write_text("\n".join(["image", *names]))
    table = {"folder": photos}
    folder = load(photos, unlabelled=str(photos / "more")).train
    for source, options in (("shards/more.tar", {}), ("shards", {}), ("more.csv", table)):
        found = load(photos, unlabelled=str(tmp_path / source), table=_table(**options)).train
        assert isinstance(found, Split)
        assert isinstance(folder, Split)
        assert torch.equal(found.images, folder.images)


def _table(**options: Any) -> Any:
    from disk_kd.data.table_settings import TableSettings

    return TableSettings(**options)


def test_a_folder_beside_train_is_named_and_found_by_its_name(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos / "photos", root)
    shutil.copytree(photos / "more", root / "unlabelled")
    with pytest.warns(UserWarning, match=r"unlabelled is not read; to learn from its images give data.unlabelled"):
        assert load(tmp_path).train.unlabelled == 0
    assert load(tmp_path, unlabelled="unlabelled").train.unlabelled == 4


def test_streamed_images_are_those_in_memory(photos: Path) -> None:
    options = {"unlabelled": str(photos / "more"), "image_size": 6}
    in_memory, streamed = (load(photos, stream=stream, workers=0, **options).train for stream in (False, True))
    for one, other in zip(*(_batches(split, unlabelled_share=0.5) for split in (in_memory, streamed)), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert (one.view, one.unlabelled) == (other.view, other.unlabelled)


def test_the_rest_of_the_training_images_lose_their_labels_and_keep_their_numbers() -> None:
    whole, few = load_dataset("digits"), load_dataset("digits", limit_train=50, unlabelled="rest")
    assert few.train.unlabelled == len(whole.train) - 50
    assert few.train.image_fingerprint() == whole.train.image_fingerprint()  # so they share stored teacher outputs
    known = few.train.targets != UNLABELLED
    assert torch.equal(few.train.targets[known], whole.train.targets[known])
    assert torch.equal(few.train.ids[known], load_dataset("digits", limit_train=50).train.ids)
    assert few.train.fingerprint() != whole.train.fingerprint()
    limited = load_dataset("digits", limit_train=50, unlabelled="rest", limit_unlabelled=100, label_noise=0.5)
    assert (len(limited.train), limited.train.unlabelled) == (150, 100)
    with pytest.raises(DataError, match=r"rest finds no unlabelled images; give data\.limit_train"):
        load_dataset("digits", unlabelled="rest")


def test_classes_come_from_the_held_out_images_or_are_given(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "photos" / "test", tmp_path / "photos" / "test")
    found = load(tmp_path, unlabelled=str(photos / "more"))
    assert found.class_names == ("cat", "dog")
    assert (len(found.train), found.train.unlabelled, found.validation) == (4, 4, None)
    alone = load_dataset("none", unlabelled=str(photos / "more"), classes=("x", "y", "z"))
    assert (alone.num_classes, alone.validation, alone.test) == (3, None, None)
    with pytest.raises(DataError, match="no image has a label, so the classes are not known"):
        load_dataset("none", unlabelled=str(photos / "more"))


@pytest.mark.parametrize("stream", [False, True])
def test_images_of_a_held_out_split_are_told(photos: Path, tmp_path: Path, stream: bool) -> None:
    shutil.copytree(photos / "more", tmp_path / "more")
    shutil.copy(photos / "photos" / "test" / "dog" / "3.png", tmp_path / "more" / "same.png")
    options = {"unlabelled": str(tmp_path / "more"), "stream": stream, "image_size": 6}
    with pytest.raises(DataError, match=r"1 of 5 unlabelled images .*same\.png is .*3\.png of the test split; give"):
        load(photos, **options)
    with pytest.warns(UserWarning, match="they are left out"):
        left = load(photos, overlap="leave-out", **options)
    assert left.train.unlabelled == 4
    assert "same.png" not in "".join(left.train.paths or ())
    assert load(photos, overlap="keep", **options).train.unlabelled == 5
    # the default validation split is a tenth of the training images
    with pytest.raises(DataError, match="of the validation split"):
        load(photos, unlabelled=str(photos / "photos" / "train"))


def test_sources_without_a_readable_image_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "1.png").write_bytes(b"no image")
    for source, message in (
        ("empty", "is expected to hold images, it holds none"),
        ("damaged", r"none of the 1 unlabelled images can be read: .*1\.png"),
        ("nothing", "there is no folder, tar or table data.unlabelled"),
    ):
        with pytest.raises(DataError, match=message):
            load(photos, unlabelled=str(tmp_path / source))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabelled_share": 1.5, "unlabelled": "x"}, r"must be a share in \[0, 1\], or auto, not 1.5"),
        ({"unlabelled_share": 0.5}, "data.unlabelled_share needs unlabelled images; give data.unlabelled"),
        ({"limit_unlabelled": 5}, "data.limit_unlabelled needs unlabelled images"),
        ({"classes": ("a", "b")}, "data.classes is for the dataset none"),
        ({"name": "none"}, "data.name none has no labelled images; give data.unlabelled"),
    ],
)
def test_settings_that_do_not_fit_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(**{"name": "digits"} | options)


def _batches(split: Any, **options: Any) -> list[Any]:
    loader = Loader(split, batch_size=4, mean=[0.5] * 3, std=[0.5] * 3, **options)
    return [batch for epoch in range(3) for batch in loader.batches(epoch)]


def test_a_share_is_kept_and_every_image_is_seen_as_often_as_the_others_of_its_kind() -> None:
    labelled, unlabelled = torch.arange(7), torch.arange(7, 50)
    order = SharedOrder(labelled, unlabelled, share=0.3, batch_size=10, steps=5, seed=1)
    rows = torch.cat([order.rows(epoch) for epoch in range(40)])
    seen = Counter(rows.tolist())
    assert sum(count for row, count in seen.items() if row >= 7) == 0.3 * len(rows)
    for kind in (labelled, unlabelled):
        counts = [seen[row] for row in kind.tolist()]
        assert max(counts) - min(counts) <= 1
    for batch in rows.view(-1, 10):
        assert int((batch >= 7).sum()) == 3
        assert [int((half >= 7).sum()) for half in batch.chunk(2)] in ([1, 2], [2, 1])
    assert torch.equal(order.rows(17), rows[17 * 50 : 18 * 50])


def test_an_image_that_repeats_in_an_epoch_gets_another_view_each_time() -> None:
    order = SharedOrder(torch.arange(5), torch.arange(5, 50), share=0.5, batch_size=10, steps=5, seed=0)
    assert [order.views(epoch) for epoch in (0, 1)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("share", [None, 0.25, 0.75])
def test_batches_are_those_of_one_process_and_of_an_epoch_from_its_start(share: float | None) -> None:
    split = load_dataset("digits", limit_train=60, unlabelled="rest", limit_unlabelled=200).train
    options: dict[str, Any] = {"batch_size": 16, "mean": [0.5], "std": [0.5], "unlabelled_share": share, "views": 3}
    loader = Loader(split, **options, group=64)
    whole = list(loader.batches(2))
    assert loader.unlabelled_in(2) == sum(int((batch.targets == UNLABELLED).sum()) for batch in whole)
    for one, other in zip(whole[5:], loader.batches(2, start=5), strict=True):
        assert torch.equal(one.images, other.images)
        assert one[3:] == other[3:]
    halves = [Loader(split, **options, rank=rank, ranks=2).batches(2) for rank in (0, 1)]
    for one, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(one.images, torch.cat([part.images for part in parts]))
        assert {part.unlabelled for part in parts} == {int((one.targets == UNLABELLED).sum())}


def test_a_share_needs_images_of_both_kinds() -> None:
    rows = torch.arange(4)
    with pytest.raises(ConfigError, match=r"unlabelled_share=0\.5 asks for labelled images, but there are none"):
        SharedOrder(rows[:0], rows, share=0.5, batch_size=2, steps=2, seed=0)
