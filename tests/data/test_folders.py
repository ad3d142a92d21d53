from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disk_kd.data.decode import Reading
from disk_kd.data.folders import class_samples, folder_parts, tiny_imagenet_parts
from disk_kd.data.split import Split
from disk_kd.errors import DataError

CIFAR100 = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write_image(path: Path, level: int, side: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), level, dtype=np.uint8)).save(path)


def write_classes(folder: Path, classes: tuple[str, ...] = ("dog", "Ant", "cat"), each: int = 2) -> Path:
    """Images whose grey level is ten times the class's place in `classes`, plus their number."""
    for place, name in enumerate(classes):
        for number in range(each):
            write_image(folder / name / f"{number}.png", 10 * place + number)
    return folder


def pack(folder: Path, tar: Path, around: str) -> Path:
    with tarfile.open(tar, "w") as archive:
        archive.add(folder, around)
    return tar


def levels(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_labels_follow_the_alphabet_and_samples_their_paths(tmp_path: Path):
    split = class_samples(write_classes(tmp_path / "x")).split(Reading())
    assert split.class_names == ("Ant", "cat", "dog")
    assert split.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert levels(split) == [10, 11, 20, 21, 0, 1]
    assert split.ids.tolist() == list(range(6))
    assert split.paths is not None
    assert split.paths[0] == str(tmp_path / "x" / "Ant" / "0.png")


@pytest.mark.parametrize("around", ["", ".", "train"])
def test_a_tar_is_the_same_dataset_as_its_folder(tmp_path: Path, around: str):
    folder = write_classes(tmp_path / "x")
    write_image(folder / "cat" / "deeper" / "9.png", 99)
    from_tar = class_samples(pack(folder, tmp_path / "x.tar", around)).split(Reading())
    assert from_tar.fingerprint() == class_samples(folder).split(Reading()).fingerprint()
    assert from_tar.paths is not None
    assert from_tar.paths[-1] == f"{tmp_path / 'x.tar'}:dog/1.png"


def test_only_the_asked_samples_are_decoded(tmp_path: Path):
    folder = write_classes(tmp_path)
    (folder / "dog" / "1.png").write_bytes(b"damaged")
    samples = class_samples(folder)
    part = samples.split(Reading(), torch.tensor([4, 0]))
    assert levels(part) == [0, 10]
    assert part.ids.tolist() == [4, 0]
    with pytest.raises(DataError, match=r"dog/1\.png cannot be read as an image"):
        samples.split(Reading())


def test_other_files_and_hidden_ones_are_left_out(tmp_path: Path):
    folder = write_classes(tmp_path)
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "._0.png").write_text("left by another system")
    (folder / ".cache").mkdir()
    write_image(folder / "beside.png", 5)
    assert len(class_samples(folder).split(Reading())) == 6


def test_an_empty_class_is_named(tmp_path: Path):
    folder = write_classes(tmp_path / "x")
    (folder / "bee").mkdir()
    for path in (folder, pack(folder, tmp_path / "x.tar", "")):
        with pytest.raises(DataError, match="class folder bee holds no images; fill or remove it"):
            class_samples(path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    for name in ("train/a/0.png", "train/b/0.png", "more/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "train/a/more").symlink_to(tmp_path / "more")
    assert class_samples(tmp_path / "train").targets.tolist() == [0, 0, 1]
    (tmp_path / "train/b/round").symlink_to("..")
    with pytest.raises(DataError, match=r"train/b/round leads back to a folder around it, .*/train; remove the link"):
        class_samples(tmp_path / "train")


def test_what_holds_no_class_folders_is_refused(tmp_path: Path):
    write_image(tmp_path / "x" / "0.png", 1)
    for path in (tmp_path / "x", pack(tmp_path / "x", tmp_path / "x.tar", "")):
        with pytest.raises(DataError, match="expected to hold class folders with images, it holds none"):
            class_samples(path)


def test_a_compressed_or_damaged_tar_is_refused(tmp_path: Path):
    folder = write_classes(tmp_path / "x")
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as archive:
        archive.add(folder, "")
    (tmp_path / "empty.tar").write_bytes(b"")
    for name in ("zipped", "empty"):
        with pytest.raises(DataError, match=rf"{name}\.tar cannot be read as an uncompressed tar"):
            class_samples(tmp_path / f"{name}.tar")


def test_tar_members_are_never_unpacked(tmp_path: Path):
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(picture, "PNG")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in ("cat/0.png", "../outside/0.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    assert len(class_samples(tmp_path / "train.tar").split(Reading())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["train.tar"]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_splits_of_a_root(tmp_path: Path, name: str):
    for part in ("train", name, "test"):
        write_classes(tmp_path / part)
    parts = folder_parts(tmp_path)
    assert parts.validation is not None
    assert parts.test is not None
    assert parts.train.paths is not None
    assert parts.train.paths[0].startswith(str(tmp_path / "train"))


def test_splits_may_be_tars(tmp_path: Path):
    folder = write_classes(tmp_path / "x")
    pack(folder, tmp_path / "train.tar", "")
    pack(folder, tmp_path / "animals-test.tar", "")
    parts = folder_parts(tmp_path)
    assert len(parts.train.targets) == 6
    assert parts.validation is None
    assert parts.test is not None


def test_a_root_without_a_training_split_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"hold a folder train, train.tar or \*-train.tar; it holds nothing"):
        folder_parts(tmp_path)
    write_classes(tmp_path)
    with pytest.raises(DataError, match="it holds Ant, cat, dog"):
        folder_parts(tmp_path)


def test_a_split_given_twice_is_refused(tmp_path: Path):
    folder = write_classes(tmp_path / "train")
    pack(folder, tmp_path / "animals-train.tar", "")
    with pytest.raises(DataError, match=r"one train split, it holds train, animals-train.tar; move the others"):
        folder_parts(tmp_path)


def write_tiny_imagenet(root: Path) -> None:
    for place, name in enumerate(("n02", "n01")):
        write_image(root / "train" / name / "images" / f"{name}_0.JPEG", 50 * place)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
    rows = []
    for number, name in enumerate(("n02", "n01", "n02")):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", 100 + number)
        rows.append(f"val_{number}.JPEG\t{name}\t0\t0\t3\t3")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_as_its_archive_unpacks(tmp_path: Path, inner: str):
    write_tiny_imagenet(tmp_path / inner)
    parts = tiny_imagenet_parts(tmp_path)
    assert parts.train.class_names == ("n01", "n02")
    assert levels(parts.train.split(Reading())) == [50, 0]
    assert parts.validation is None
    assert parts.test is not None
    test = parts.test.split(Reading())
    assert levels(test) == [100, 101, 102]
    assert test.targets.tolist() == [1, 0, 1]


def test_tiny_imagenet_with_sorted_validation_images(tmp_path: Path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", each=1)
    parts = tiny_imagenet_parts(tmp_path)
    assert parts.test is not None
    assert parts.test.targets.tolist() == [0, 1, 2]


def test_tiny_imagenet_is_shown_in_words(tmp_path: Path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "words.txt").write_text("n00\tother\nn01\tgoldfish, Carassius auratus\nno line\n", encoding="utf-8")
    parts = tiny_imagenet_parts(tmp_path)
    assert parts.test is not None
    train = parts.train.split(Reading())
    for split in (train, train.subset([1]), parts.test.split(Reading()), parts.train.stream(Reading(4))):
        assert split.class_names == ("n01", "n02")
        assert split.shown_names == ("goldfish, Carassius auratus", "n02")
    (tmp_path / "words.txt").write_text("n01\tcrane\nn02\tcrane\n")
    assert tiny_imagenet_parts(tmp_path).train.class_words == ("crane (n01)", "crane (n02)")
    (tmp_path / "words.txt").unlink()
    plain = tiny_imagenet_parts(tmp_path).train.split(Reading())
    assert plain.shown_names == ("n01", "n02")
    assert plain.fingerprint() == train.fingerprint()


def test_tiny_imagenet_of_another_layout_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="tiny-imagenet-200 with train and val; train is missing"):
        tiny_imagenet_parts(tmp_path)
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t3\t3\n")
    with pytest.raises(DataError, match="names class n77, which has no folder in train"):
        tiny_imagenet_parts(tmp_path)


@pytest.mark.skipif(not (CIFAR100 / "cifar100-train.tar").is_file(), reason="no CIFAR-100 beside the repository")
def test_cifar100_tars_have_the_usual_labels():
    train, test = (class_samples(CIFAR100 / f"cifar100-{part}.tar") for part in ("train", "test"))
    assert (len(train.targets), len(test.targets)) == (50_000, 10_000)
    assert train.class_names == test.class_names
    # fine labels of the published meta file
    known = {0: "apple", 1: "aquarium_fish", 49: "mountain", 52: "oak_tree", 72: "seal", 99: "worm"}
    assert {label: train.class_names[label] for label in known} == known
    assert train.targets.bincount().unique().tolist() == [500]
    sample = test.split(Reading(), torch.arange(0, 10_000, 500))
    assert sample.images.shape == (20, 3, 32, 32)
