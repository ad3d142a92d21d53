from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.datasets import CIFAR10, CIFAR100

from disk_kd.data.decode import Reading
from disk_kd.data.readers import _arrange, _read, reader_parts
from disk_kd.data.samples import from_memory
from disk_kd.data.sources import load_dataset
from disk_kd.errors import DataError


def write_mnist(root: Path, train_labels: list[int], test_labels: list[int]) -> None:
    """The four files of MNIST, 28x28, each image of ten times its label."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, labels in (("train", train_labels), ("t10k", test_labels)):
        images = np.repeat(np.array(labels, dtype=np.uint8) * 10, 28 * 28).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, len(labels), 28, 28) + images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + bytes(labels))


def write_cifar(root: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive in CIFAR's layout, with its own MD5 sums made known to torchvision."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    label_key = "labels" if kind is CIFAR10 else "fine_labels"

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def images(first: int) -> np.ndarray:
        return np.repeat(np.arange(first, first + 10, dtype=np.uint8), 3072).reshape(10, 3072)

    names = [f"class {i}" for i in range(10)]
    monkeypatch.setattr(kind, "train_list", [write("one", {"data": images(0), label_key: list(range(10))})])
    monkeypatch.setattr(kind, "test_list", [write("two", {"data": images(100), label_key: list(range(9, -1, -1))})])
    file, checksum = write("names", {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": file, "md5": checksum})


def test_a_torchvision_set_is_read_through_timm(tmp_path: Path):
    write_mnist(tmp_path, [3, 1, 4, 1, 5, 9, 2, 6, 0, 7, 8], [2, 7])
    parts = reader_parts("torch/mnist", str(tmp_path), None, download=False)
    train, test = parts.train.split(Reading()), parts.test.split(Reading())
    assert parts.validation is None
    assert train.images.shape == (11, 3, 28, 28)
    assert torch.equal(train.images[:, 2, 5, 5].long(), train.targets * 10)
    assert test.targets.tolist() == [2, 7]
    assert train.class_names[3] == "3 - three"


def test_images_are_brought_to_the_asked_size(tmp_path: Path):
    write_mnist(tmp_path, list(range(10)), [0])
    parts = reader_parts("torch/mnist", str(tmp_path), 14, download=False)
    assert parts.train.split(Reading(14)).images.shape == (10, 3, 14, 14)


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_cifar_is_read_from_torchvisions_copy(tmp_path: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch):
    write_cifar(tmp_path, kind, monkeypatch)
    dataset = load_dataset(kind.__name__.lower(), root=tmp_path, validation=0)
    assert dataset.class_names == tuple(f"class {i}" for i in range(10))
    assert dataset.train.images.shape == (10, 3, 32, 32)
    assert dataset.train.images[:, 1, 7, 7].tolist() == list(range(10))
    assert dataset.test is not None
    assert dataset.test.images[:, 0, 0, 0].tolist() == list(range(100, 110))
    assert dataset.test.targets.tolist() == list(range(9, -1, -1))


class Stream(IterableDataset):
    """A streamed dataset: grey levels and sides of images, and their labels."""

    def __init__(self, *samples: tuple[int, int, object]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[Image.Image, object]]:
        for level, side, label in self.samples:
            yield Image.new("L", (side, side), level), label


def test_a_stream_is_read_in_order():
    images, targets = _read("wds/x train", Stream((7, 4, 2), (9, 4, np.int64(0)), (8, 4, torch.tensor(1))), None)
    assert images.shape == (3, 3, 4, 4)
    assert images[:, 1, 2, 3].tolist() == [7, 9, 8]
    assert targets.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream(), "wds/x train holds no samples"),
        (Stream((1, 4, 0), (1, 5, 0)), r"images differ in size, sample 1 from sample 0; give data.image_size"),
        (Stream((1, 4, 0.5)), "one integer label for each image is expected, sample 0 has 0.5"),
        (Stream((1, 4, float("inf"))), "one integer label for each image is expected, sample 0 has inf"),
        (Stream((1, 4, [0, 1])), r"one integer label for each image is expected, sample 0 has \[0, 1\]"),
    ],
)
def test_a_stream_that_is_no_classification_set_is_refused(stream: Stream, message: str):
    with pytest.raises(DataError, match=message):
        _read("wds/x train", stream, None)


def test_a_held_out_split_that_is_alone_is_the_test_split():
    train, validation, test = (
        from_memory(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1), ("a",)) for _ in range(3)
    )
    assert _arrange({"train": train}) == (train, None, None)
    assert _arrange({"train": train, "validation": validation}) == (train, None, validation)
    assert _arrange({"train": train, "test": test}) == (train, None, test)
    assert _arrange({"train": train, "validation": validation, "test": test}) == (train, validation, test)


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_changed_cifar_file_is_refused_before_it_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cifar(tmp_path, CIFAR10, monkeypatch)
    harm = tmp_path / "harm"
    (tmp_path / CIFAR10.base_folder / "one").write_bytes(pickle.dumps(Payload(harm)))
    with pytest.raises(DataError, match="Dataset not found or corrupted"):
        load_dataset("cifar10", root=tmp_path)
    assert not harm.exists()


def test_missing_data_asks_for_a_download(tmp_path: Path):
    with pytest.raises(DataError, match=r"torch/mnist cannot be opened .*not found.*; give data.download=true"):
        reader_parts("torch/mnist", str(tmp_path), None, download=False)


def test_a_set_that_torchvision_lacks_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"torch/nothing cannot be opened by timm .*Unknown torchvision dataset"):
        reader_parts("torch/nothing", str(tmp_path), None, download=False)


@pytest.mark.parametrize(
    ("prefix", "module", "packages"),
    [
        ("hfds", "datasets", "datasets"),
        ("hfids", "datasets", "datasets"),
        ("tfds", "tensorflow_datasets", "tensorflow tensorflow-datasets"),
        ("wds", "webdataset", "webdataset"),
    ],
)
def test_a_missing_package_is_named(prefix: str, module: str, packages: str):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(DataError, match=f"{prefix}/a/b needs the package {module}: pip install {packages}$"):
        reader_parts(f"{prefix}/a/b", None, None, download=False)
