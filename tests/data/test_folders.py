from __future__ import annotations

import io
import os
import shutil
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
    folder = write_classes(tmp_path / "x")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "._0.png").write_text("left by another system")
    write_image(folder / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", 5)
    write_image(folder / ".cache" / "0.png", 5)
    for path in (folder, pack(folder, tmp_path / "x.tar", "")):
        assert len(class_samples(path).split(Reading())) == 6


def test_files_that_are_passed_over_are_told(tmp_path: Path):
    folder = write_classes(tmp_path / "x")
    (folder / "cat" / "7.heic").write_bytes(b"a format that Pillow lacks")
    write_image(folder / "beside.png", 5)
    for path in (folder, pack(folder, tmp_path / "x.tar", "")):
        with pytest.warns(UserWarning, match=r"left out: files of .*x.* \(2, such as beside\.png\); images end in"):
            assert len(class_samples(path).split(Reading())) == 6


@pytest.mark.parametrize("ending", ["jfif", "gif", "avif", "TGA", "jp2"])
def test_images_of_other_endings_are_read(tmp_path: Path, ending: str):
    folder = write_classes(tmp_path)
    write_image(folder / "dog" / f"9.{ending}", 80, side=8)
    assert levels(class_samples(folder).split(Reading(4)))[-1] == pytest.approx(80, abs=2)


def test_one_class_folder_around_the_classes_is_refused(tmp_path: Path):
    write_classes(tmp_path / "train" / "images")
    with pytest.raises(DataError, match=r"one class folder, images, which holds the folders Ant, cat, dog; .* move"):
        class_samples(tmp_path / "train")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_classes(tmp_path)
    write_image(folder / "cat" / "more" / "0.png", 5)
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(DataError, match=r"cat/more cannot be read: Permission denied; make it readable or remove it"):
        class_samples(folder)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, kind: str):
    folder = write_classes(tmp_path)
    if kind == "pipe":
        os.mkfifo(folder / "dog" / "9.png")
    else:
        (folder / "dog" / "9.png").symlink_to("/dev/zero")
    samples = class_samples(folder)
    with pytest.raises(DataError, match=r"dog/9\.png cannot be read: it is not a regular file; replace it"):
        samples.split(Reading())
    with pytest.warns(UserWarning, match=r"left out: .*dog/9\.png"):
        assert len(samples.split(Reading(skip_unreadable=True))) == 6


@pytest.mark.parametrize("links", [True, False], ids=["soft", "hard"])
def test_links_in_a_tar_count_as_in_its_folder(tmp_path: Path, links: bool):
    folder = write_classes(tmp_path / "x")
    if links:
        (folder / "cat" / "7.png").symlink_to("../dog/1.png")
        (folder / "cat" / "8.png").symlink_to("7.png")
    else:
        os.link(folder / "dog" / "1.png", folder / "cat" / "7.png")
    from_tar = class_samples(pack(folder, tmp_path / "x.tar", "train")).split(Reading())
    assert from_tar.fingerprint() == class_samples(folder).split(Reading()).fingerprint()
    assert 1 in levels(from_tar)[2:5]


@pytest.mark.parametrize("target", ["../../outside.png", "../dog", "gone.png", "7.png"])
def test_a_link_to_no_file_in_the_tar_is_refused(tmp_path: Path, target: str):
    folder = write_classes(tmp_path / "x")
    (folder / "cat" / "7.png").symlink_to(target)
    with pytest.raises(DataError, match=r"x\.tar:cat/7\.png is a link to no file in the tar; .* --dereference"):
        class_samples(pack(folder, tmp_path / "x.tar", ""))


def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path):
    whole = pack(write_classes(tmp_path / "x"), tmp_path / "x.tar", "")
    with tarfile.open(whole) as tar:
        last = tar.getmembers()[-1]
    content = whole.read_bytes()
    damaged = bytearray(content)
    damaged[last.offset] ^= 1  # the checksum of its header is wrong
    for wrong in (content[: last.offset], bytes(damaged)):
        (tmp_path / "cut.tar").write_bytes(wrong)
        with pytest.raises(DataError, match=rf"cut\.tar ends or is damaged at byte {last.offset}, before its end"):
            class_samples(tmp_path / "cut.tar")
    (tmp_path / "two.tar").write_bytes(content + content)
    with pytest.raises(DataError, match=r"two\.tar goes on after its end mark at byte \d+; pack it again as one tar"):
        class_samples(tmp_path / "two.tar")


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


def test_a_tar_of_absolute_names_is_read_as_tar_unpacks_it(tmp_path: Path):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in ("/cat/0.png", "dog/0.png", "//dog/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    samples = class_samples(tmp_path / "train.tar")
    assert (samples.class_names, samples.targets.tolist()) == (("cat", "dog"), [0, 1, 1])


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


@pytest.mark.parametrize(
    ("name", "split"),
    [("valid", "validation"), ("dev", "validation"), ("Val", "validation"), ("testing", "test"), ("TEST", "test")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_other_spellings_of_a_split_are_read_and_told(tmp_path: Path, name: str, split: str, packed: bool):
    write_classes(tmp_path / "train")
    folder = write_classes(tmp_path / "x" / name if packed else tmp_path / name, each=1)
    if packed:
        pack(folder, tmp_path / f"animals-{name}.tar", name)
        shutil.rmtree(tmp_path / "x")
    with pytest.warns(UserWarning, match=rf"{name}(\.tar)? is read as the {split} split"):
        parts = folder_parts(tmp_path)
    found = getattr(parts, split)
    assert found is not None
    assert len(found.targets) == 3
    assert [parts.validation, parts.test].count(None) == 1


@pytest.mark.parametrize("name", ["eval", "Evaluation", "holdout"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_that_may_be_either_split_is_refused(tmp_path: Path, name: str, packed: bool):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    pack(tmp_path / "test", tmp_path / f"{name}.tar", "") if packed else write_classes(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}(\.tar)? may be for validation or for test; rename it to val or test"):
        folder_parts(tmp_path)
    write_classes(tmp_path / "val")
    with pytest.warns(UserWarning, match=rf"holds {name}(\.tar)?, which are not read: splits are named train, val and"):
        assert folder_parts(tmp_path).validation is not None


@pytest.mark.parametrize("name", ["val.zip", "animals-test.tar.gz"])
def test_an_archive_that_may_be_a_missing_split_is_refused(tmp_path: Path, name: str):
    write_classes(tmp_path / "train")
    (tmp_path / name).write_bytes(b"packed")
    with pytest.raises(DataError, match=rf"{name} is not read: unpack it, pack it as an uncompressed tar, or move it"):
        folder_parts(tmp_path)
    write_classes(tmp_path / "val")
    write_classes(tmp_path / "test")
    assert folder_parts(tmp_path).validation is not None


def test_a_root_without_a_training_split_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"hold a folder train, train.tar or \*-train.tar; it holds nothing"):
        folder_parts(tmp_path)
    write_classes(tmp_path)
    with pytest.raises(DataError, match="it holds Ant, cat, dog"):
        folder_parts(tmp_path)


def test_a_split_given_twice_is_refused(tmp_path: Path):
    folder = write_classes(tmp_path / "train")
    pack(folder, tmp_path / "animals-train.tar", "")
    with pytest.raises(DataError, match=r"one train split, it holds animals-train.tar, train; move the others"):
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
    (tmp_path / "words.txt").write_bytes(b"n01\tcaf\xe9\n")
    assert tiny_imagenet_parts(tmp_path).train.class_words == ("caf\ufffd", "n02")
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
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG n02\n")
    with pytest.raises(DataError, match=r"expected to hold lines FILE<TAB>CLASS<TAB>…, it has .*'val_0.JPEG n02'"):
        tiny_imagenet_parts(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t3\t3\n")
    with pytest.warns(UserWarning, match=r"left out: files of .*val/images .* \(2, such as val_1\.JPEG\)"):
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
