from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from disk_kd.data.readers import READERS
from disk_kd.data.sources import DATASETS, load_dataset
from disk_kd.errors import ConfigError, DataError

CIFAR100 = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write_split(folder: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 6, side: int = 4) -> None:
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_digits_are_scikit_learns():
    dataset = load_dataset("digits", validation=0)
    assert dataset.validation is None
    assert dataset.test is not None
    assert (dataset.num_classes, dataset.in_chans, dataset.image_size) == (10, 1, 8)
    assert (len(dataset.train), len(dataset.test)) == (1258, 539)
    assert dataset.class_names == tuple("0123456789")
    # every original image occurs once, 0 … 16 scaled to 0 … 255
    bunch = load_digits()
    original = {(image.tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True)}
    ours = set()
    for split in (dataset.train, dataset.test):
        pixels = (split.images[:, 0].double() * 16 / 255).round().numpy()
        ours |= {(image.tobytes(), label) for image, label in zip(pixels, split.targets.tolist(), strict=True)}
    assert ours == original


def test_digits_test_split_is_stratified_and_does_not_hang_on_the_seed():
    splits = [load_dataset("digits", split_seed=seed, validation=share).test for seed, share in ((0, 0.1), (5, 0.3))]
    assert splits[0].fingerprint() == splits[1].fingerprint()
    whole = torch.from_numpy(load_digits().target).bincount()
    assert (splits[0].targets.bincount() - 0.3 * whole).abs().max() < 1


def test_digits_can_be_enlarged():
    dataset = load_dataset("digits", image_size=16)
    assert dataset.image_size == 16
    assert dataset.validation is not None
    assert dataset.validation.images.shape[1:] == (1, 16, 16)


def test_validation_split_is_stratified_and_leaves_ids():
    dataset = load_dataset("digits", validation=0.2, split_seed=3)
    whole = load_dataset("digits", validation=0)
    assert dataset.validation is not None
    assert len(dataset.validation) == round(0.2 * 1258)
    ids = torch.cat([dataset.train.ids, dataset.validation.ids])
    assert torch.equal(ids.sort().values, torch.arange(1258))
    for split in (dataset.train, dataset.validation):
        assert torch.equal(split.images, whole.train.images[split.ids])
        assert torch.equal(split.targets, whole.train.targets[split.ids])
    share = dataset.validation.targets.bincount() - 0.2 * whole.train.targets.bincount()
    assert share.abs().max() < 1


def test_the_same_options_give_the_same_data():
    options = {"validation": 0.2, "limit_train": 300, "label_noise": 0.3}
    first, again, other = (load_dataset("digits", split_seed=seed, **options) for seed in (1, 1, 2))
    assert first.train.fingerprint() == again.train.fingerprint() != other.train.fingerprint()
    assert first.validation is not None
    assert again.validation is not None
    assert first.validation.fingerprint() == again.validation.fingerprint()


def test_limit_keeps_a_stratified_part_of_the_same_training_samples():
    whole, part = load_dataset("digits"), load_dataset("digits", limit_train=100)
    assert len(part.train) == 100
    assert set(part.train.ids.tolist()) < set(whole.train.ids.tolist())
    assert part.train.targets.bincount().tolist() == pytest.approx([10] * 10, abs=1)
    assert whole.validation is not None
    assert part.validation is not None
    assert part.validation.fingerprint() == whole.validation.fingerprint()
    assert len(load_dataset("digits", limit_train=10**6).train) == len(whole.train)


def test_a_limit_of_the_test_split_is_stratified_and_the_same_for_every_seed():
    whole, part, other = (load_dataset("digits", limit_test=limit, split_seed=seed) for limit, seed in LIMITS)
    assert whole.test is not None
    assert part.test is not None
    assert other.test is not None
    assert len(part.test) == 60
    share = part.test.targets.bincount() - 60 * whole.test.targets.bincount() / len(whole.test)
    assert share.abs().max() < 1
    assert torch.equal(part.test.images, whole.test.images[part.test.ids])
    assert part.test.fingerprint() == other.test.fingerprint() != whole.test.fingerprint()
    assert part.train.fingerprint() == whole.train.fingerprint()


LIMITS = ((None, 0), (60, 0), (60, 7))


def test_a_limit_without_a_test_split_is_refused(tmp_path: Path):
    write_split(tmp_path / "train")
    with pytest.raises(ConfigError, match=r"folder has no test split: leave data\.limit_test"):
        load_dataset("folder", root=tmp_path, limit_test=2)
    with pytest.raises(ConfigError, match=r"data\.limit_test is at least the number of classes, 10, got 9"):
        load_dataset("digits", limit_test=9)


def test_noise_falls_on_training_labels_only():
    clean, noisy = load_dataset("digits"), load_dataset("digits", label_noise=0.4)
    changed = clean.train.targets != noisy.train.targets
    assert int(changed.sum()) == round(0.4 * len(clean.train))
    assert torch.equal(clean.train.images, noisy.train.images)
    for part in ("validation", "test"):
        assert getattr(clean, part).fingerprint() == getattr(noisy, part).fingerprint()


def test_folder_with_its_own_validation_split(tmp_path: Path):
    for part in ("train", "val", "test"):
        write_split(tmp_path / part)
    dataset = load_dataset("folder", root=tmp_path, validation=0.5)
    assert dataset.validation is not None
    assert len(dataset.train) == len(dataset.validation) == 12
    assert dataset.validation.paths is not None
    assert dataset.validation.paths[0].startswith(str(tmp_path / "val"))


def test_folder_without_held_out_splits(tmp_path: Path):
    write_split(tmp_path / "train")
    dataset = load_dataset("folder", root=tmp_path, validation=0.5, image_size=8)
    assert dataset.test is None
    assert dataset.validation is not None
    assert dataset.validation.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.image_size == 8
    assert dataset.train.paths is not None
    assert not set(dataset.train.paths) & set(dataset.validation.paths or ())


def test_tiny_imagenet_has_a_usual_normalisation(tmp_path: Path):
    for part in ("train", "val"):
        write_split(tmp_path / part)
    (tmp_path / "words.txt").write_text("a\tant\nb\tbee\n")
    dataset = load_dataset("tiny-imagenet", root=tmp_path)
    assert dataset.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (dataset.class_names, dataset.shown_names) == (("a", "b"), ("ant", "bee"))
    assert load_dataset("folder", root=tmp_path).normalisation is None
    assert load_dataset("digits").normalisation is None
    assert load_dataset("digits").shown_names == load_dataset("digits").class_names


def test_torchvisions_folder_is_ours(tmp_path: Path):
    for part in ("train", "test"):
        write_split(tmp_path / part)
    ours, theirs = (load_dataset(name, root=tmp_path) for name in ("folder", "torch/image_folder"))
    assert ours.train.fingerprint() == theirs.train.fingerprint()


def test_splits_of_other_classes_are_refused(tmp_path: Path):
    write_split(tmp_path / "train")
    write_split(tmp_path / "test", ("a", "c"))
    with pytest.raises(DataError, match="train and test are expected to have the same classes; only one has b, c"):
        load_dataset("folder", root=tmp_path)


def test_splits_of_other_sizes_need_a_size(tmp_path: Path):
    write_split(tmp_path / "train")
    write_split(tmp_path / "test", side=5)
    with pytest.raises(DataError, match=r"folder: test images are 3x5x5, train 3x4x4; give data.image_size"):
        load_dataset("folder", root=tmp_path)
    assert load_dataset("folder", root=tmp_path, image_size=4).image_size == 4


def test_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_split(tmp_path / "train")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**28, total=2**28))
    with pytest.raises(DataError, match=r"images of 3x10000x10000 need .* GiB of memory"):
        load_dataset("folder", root=tmp_path, image_size=10_000, stream=False)


def test_a_training_split_that_is_all_set_aside_is_refused(tmp_path: Path):
    write_split(tmp_path / "train", each=1)
    with pytest.raises(DataError, match=r"takes all 2 training images of .*; lower data\.validation"):
        load_dataset("folder", root=tmp_path, validation=0.9)


def test_a_single_class_is_refused(tmp_path: Path):
    write_split(tmp_path / "train", classes=("a",))
    with pytest.raises(DataError, match="folder has one class, a; at least two are needed"):
        load_dataset("folder", root=tmp_path)


def pack(root: Path) -> None:
    """Makes tars of the folders of a root."""
    for folder in list(root.iterdir()):
        with tarfile.open(root / f"{folder.name}.tar", "w") as tar:
            tar.add(folder, ".")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("one", "other"), [("caf\u00e9", "cafe\u0301"), ("cat", "cat ")], ids=["composed", "with a space"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_classes_that_look_the_same_are_refused(tmp_path: Path, packed: bool, one: str, other: str):
    write_split(tmp_path / "train", classes=(one, other), each=1)
    if packed:
        pack(tmp_path)
    with pytest.raises(DataError, match=r"folder: the classes '.*' and '.*' look the same; rename one, or join them"):
        load_dataset("folder", root=tmp_path)


def test_names_that_look_the_same_are_refused(tmp_path: Path):
    write_split(tmp_path / "train", classes=("caf\u00e9", "cafe\u0301"))
    with pytest.raises(DataError, match=r"the classes 'caf\\xe9' and 'cafe\\u0301' look the same; rename one"):
        load_dataset("folder", root=tmp_path)
    (tmp_path / "train" / "cafe\u0301").rename(tmp_path / "train" / "b")
    write_split(tmp_path / "test", classes=("cafe\u0301", "b"))
    with pytest.raises(DataError, match=r"the classes 'caf\\xe9' and 'cafe\\u0301' look the same; rename one"):
        load_dataset("folder", root=tmp_path)


def test_a_limit_below_the_classes_is_refused():
    with pytest.raises(ConfigError, match=r"data\.limit_train is at least the number of classes, 10, got 9"):
        load_dataset("digits", limit_train=9)


@pytest.mark.parametrize("packed", [False, True])
def test_a_limit_below_the_classes_of_a_folder_or_tar_is_refused(tmp_path: Path, packed: bool):
    write_split(tmp_path / "train", classes=("a", "b", "c"))
    if packed:
        pack(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.limit_train is at least the number of classes, 3, got 2"):
        load_dataset("folder", root=tmp_path, limit_train=2)


def test_classes_without_a_training_image_are_told(tmp_path: Path):
    write_split(tmp_path / "train", classes=("a", "b"), each=20)
    write_split(tmp_path / "train", classes=("c",), each=1)
    with pytest.warns(UserWarning, match="folder: 1 of 3 classes have no training image, such as c"):
        load_dataset("folder", root=tmp_path, limit_train=4, validation=0)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    with pytest.warns(UserWarning, match="folder: 1 of 3 classes have no test image, such as c"):
        load_dataset("folder", root=tmp_path, limit_test=4, validation=0)


@pytest.mark.parametrize("option", [{"crop_pct": 0.9}, {"skip_unreadable": True}])
def test_options_of_files_are_refused_for_images_in_memory(option: dict):
    with pytest.raises(ConfigError, match=rf"the images of digits are not files: leave data.{next(iter(option))}="):
        load_dataset("digits", **option)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifra10", "data.name 'cifra10' is not a dataset; nearest: cifar10"),
        ("CIFAR100", "data.name 'CIFAR100' is not a dataset; nearest: cifar100"),
        ("torch/", "data.name 'torch/' is not a dataset"),
        ("nope/cifar10", "data.name 'nope/cifar10' is not a dataset"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_dataset(name)


@pytest.mark.parametrize("name", ["folder", "tiny-imagenet", "cifar10", "torch/mnist", "wds/x"])
def test_a_root_is_needed(name: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"{name} needs data.root, the folder of its data"):
        load_dataset(name)
    with pytest.raises(DataError, match=rf"{name}: there is no folder data.root .*gone"):
        load_dataset(name, root=tmp_path / "gone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, r"data.validation must be a share in \[0, 1\), not 1.0"),
        ({"validation": -0.1}, r"data.validation must be a share in \[0, 1\), not -0.1"),
        ({"image_size": 0}, r"data.image_size must be from 1 to 10,000, or null, not 0"),
        ({"limit_train": 0}, r"data.limit_train must be at least 1, or null, not 0"),
        ({"label_noise": 1.5}, r"data.label_noise must be a share in \[0, 1\], not 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        load_dataset("digits", **options)


def test_every_reader_is_listed():
    assert {name.split("/")[0] for name in DATASETS if "/" in name} == set(READERS)


@pytest.mark.skipif(not (CIFAR100 / "cifar100-train.tar").is_file(), reason="no CIFAR-100 beside the repository")
def test_cifar100_from_tars():
    dataset = load_dataset("cifar100", root=CIFAR100, image_size=16, limit_train=500, validation=0.01)
    assert dataset.test is not None
    assert dataset.validation is not None
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (500, 500, 10_000)
    assert (dataset.num_classes, dataset.in_chans, dataset.image_size) == (100, 3, 16)
    assert dataset.train.targets.bincount(minlength=100).unique().tolist() == [5]
    mean, _ = dataset.test.mean_std()
    assert mean == pytest.approx((0.507, 0.487, 0.441), abs=0.01)
