"""timm's dataset readers: `torch/…`, `hfds/…`, `wds/…`, and `hfids/…` and `tfds/…`, which are read into memory.

Shards of a WebDataset are indexed once, so that any sample can be read at any time. Without `download`, Hugging Face's
readers read only their cache and local files.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import IterableDataset

from disk_kd.data.decode import ENDINGS, check_memory, to_pixels
from disk_kd.data.folders import folder_parts, is_image
from disk_kd.data.network import network
from disk_kd.data.samples import Parts, Samples, from_memory
from disk_kd.data.stream import Files
from disk_kd.data.tars import TarFiles, tar_members
from disk_kd.errors import DataError, shown
from disk_kd.support import UNLABELLED

# prefix -> (module it needs, what to install)
READERS = {
    "torch": ("torchvision", "torchvision"),
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
    "wds": ("webdataset", "webdataset"),
}


def reader_parts(
    name: str, root: str | None, image_size: int | None, download: bool, grey_bits: int | None = None
) -> Parts:
    """The splits of a timm dataset name.

    `torch/…` datasets have one held-out split, the test split. From other readers `train`, `validation` and `test` are
    read. If only one of the last two exists with labels, it is the test split.

    Raises:
        DataError: the reader's package or data is missing, or an image or label is not usable.
    """
    prefix = _imported(name)
    if name.lower() in ("torch/image_folder", "torch/folder") and root is not None:
        return folder_parts(Path(root))
    held_out = ("validation",) if prefix == "torch" else ("validation", "test")
    with network(allowed=download):
        train = _open(name, root, "train", download)
        read = {"train": _samples(f"{name} train", prefix, train, image_size, grey_bits)}
        for part in held_out:
            if (dataset := _open(name, root, part, download)) is not None:
                samples = _samples(f"{name} {part}", prefix, dataset, image_size, grey_bits)
                if int(samples.targets.max()) >= 0:  # public test sets often come with labels of -1
                    read[part] = samples
    names = _class_names(train)
    for part, samples in read.items():
        lowest, highest = int(samples.targets.min()), int(samples.targets.max())
        if lowest < 0 or (names and highest >= len(names)):
            expected = f"in 0 … {len(names) - 1}" if names else "of at least 0"
            wrong = lowest if lowest < 0 else highest
            raise DataError(f"{name} {part}: labels {expected} are expected, one is {wrong}; remove its sample")
    if not names:
        names, read = _numbered(name, read)
    return _arrange({part: replace(samples, class_names=names) for part, samples in read.items()})


def unlabelled_reader_samples(name: str, root: str | Path | None, download: bool) -> Samples:
    """The images of the training split of `hfds/…` or `wds/…`. Its labels are not read, and it needs none.

    Raises:
        DataError: the reader cannot be used without labels, or its package or data is missing.
    """
    prefix = _imported(name)
    if prefix not in ("hfds", "wds"):
        raise DataError(f"data.unlabelled {name} cannot be read without labels; give hfds/…, wds/…, a folder or a tar")
    with network(allowed=download):
        dataset = _open(name, None if root is None else str(root), "train", download)
    if prefix == "hfds":
        files: Files = _RowFiles(dataset.reader)
        paths = [f"{name} sample {number}" for number in range(len(dataset.reader))]
    else:
        images = [
            (f"{shard}:{image}", (shard, member.offset_data, member.size))
            for shard in _shard_paths(dataset)
            for image, member in tar_members(shard).items()
            if member.isfile() and is_image(image)
        ]
        files, paths = TarFiles(place for _, place in images), [path for path, _ in images]
    if not paths:
        raise DataError(f"{name} holds no images")
    return Samples((), torch.full((len(paths),), UNLABELLED), files, tuple(map(shown, paths)))


def _imported(name: str) -> str:
    """The prefix of a reader's name, whose package is installed."""
    prefix = name.split("/")[0].lower()
    module, packages = READERS[prefix]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{name} needs the package {module}: pip install {packages}") from error
    return prefix


def _shard_paths(dataset: Any) -> list[Path]:
    return [Path(dataset.reader.root or ".", name) for name in dataset.reader.split_info.filenames]


def _numbered(name: str, splits: dict[str, Samples]) -> tuple[tuple[str, ...], dict[str, Samples]]:
    """Class names from the labels of the training samples, and the splits with labels numbered from 0 without gaps."""
    labels = splits["train"].targets.unique()
    if int(labels[-1]) != len(labels) - 1:
        warnings.warn(f"{name} has {len(labels)} labels, {_range(labels)}; they are numbered from 0 on", stacklevel=2)
    for part, samples in splits.items():
        if other := sorted(set(samples.targets.tolist()) - set(labels.tolist())):
            raise DataError(
                f"{name} {part}: label {other[0]} does not occur in the training samples; they have {_range(labels)}"
            )
    numbered = {
        part: replace(samples, targets=torch.searchsorted(labels, samples.targets)) for part, samples in splits.items()
    }
    return tuple(map(str, labels.tolist())), numbered


def _range(labels: Tensor) -> str:
    return f"{int(labels[0])} … {int(labels[-1])}"


def _samples(where: str, prefix: str, dataset: Any, image_size: int | None, grey_bits: int | None) -> Samples:
    """A split whose classes have no names yet."""
    if prefix == "hfds":
        return _rows(where, dataset.reader)
    if prefix == "wds":
        return _shards(where, _shard_paths(dataset))
    images, targets = _read(where, dataset, image_size, grey_bits)
    return from_memory(images, targets, ())


@dataclass(frozen=True)
class _RowFiles:
    """Images of a Hugging Face dataset, which stay in its tables."""

    reader: Any

    def __call__(self, number: int) -> bytes:
        image = self.reader.dataset[number][self.reader.image_key]
        try:
            content: bytes = image["bytes"] or Path(image["path"]).read_bytes()
        except (TypeError, KeyError) as error:
            raise OSError("its row holds no image") from error
        return content

    def stamp(self, number: int) -> str:
        """A stamp of the whole table, which changes with its content."""
        return str(self.reader.dataset._fingerprint)


def _rows(where: str, reader: Any) -> Samples:
    """A Hugging Face dataset."""
    targets = [_label(where, number, label) for number, label in enumerate(reader.iter_targets())]
    if not targets:
        raise DataError(f"{where} holds no samples")
    paths = tuple(f"{where} sample {number}" for number in range(len(targets)))
    return Samples((), torch.tensor(targets), _RowFiles(reader), paths)


def _shards(where: str, shards: list[Path]) -> Samples:
    """Plain tars of a WebDataset on this machine: KEY.cls beside the image KEY.jpg, KEY.png and so on."""
    images: list[tuple[Path, int, int]] = []
    paths: list[str] = []
    targets: list[int] = []
    for shard in shards:
        if not shard.is_file():
            raise DataError(f"{where}: the shard {shard} is not a file; copy the shards to a local folder")
        members = {name: member for name, member in tar_members(shard).items() if member.isfile()}
        labels = {name.removesuffix(".cls"): member for name, member in members.items() if name.endswith(".cls")}
        label_files = TarFiles((shard, m.offset_data, m.size) for m in labels.values())
        label_of = {key: label_files(number) for number, key in enumerate(labels)}
        for image, member in members.items():
            if not is_image(image):
                continue
            key = image.rpartition(".")[0]
            if key not in label_of:
                raise DataError(f"{where}: {shard}:{image} has no label file {key}.cls")
            labels.pop(key, None)
            targets.append(_label(where, len(targets), label_of[key].decode("ascii", "replace").strip()))
            images.append((shard, member.offset_data, member.size))
            paths.append(shown(f"{shard}:{image}"))
        if labels:
            key = next(iter(labels))
            raise DataError(f"{where}: {shard}:{key}.cls has no image beside it; they end in {' '.join(ENDINGS)}")
    if not targets:
        raise DataError(f"{where} holds no samples")
    return Samples((), torch.tensor(targets), TarFiles(images), tuple(paths))


def _label(where: str, number: int, label: Any) -> int:
    try:
        whole = int(label)
        if whole != float(label):
            raise ValueError
        return whole
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: one integer label for each image is expected, sample {number} has {label!r}"
        ) from error


def _arrange(splits: dict[str, Samples]) -> Parts:
    """Use a single held-out split as the test split, so that no split is used for both selection and testing."""
    if "test" not in splits:
        return Parts(splits["train"], None, splits.get("validation"))
    return Parts(splits["train"], splits.get("validation"), splits["test"])


def _open(name: str, root: str | None, split: str, download: bool) -> Any:
    """timm's dataset; None if it reports that a held-out split does not exist."""
    try:
        dataset = create_dataset(name, root=root, split=split, download=download)
    except Exception as error:  # every reader raises its own kind
        reason = " ".join(str(error).split()) or type(error).__name__
        # hfids reports an unknown length for a split that does not exist.
        if split != "train" and ("split" in reason.lower() or "length is unknown" in reason):
            return None
        hint = "" if download else "; give data.download=true to fetch it"
        raise DataError(f"{name} cannot be opened by timm with root {root}: {reason}{hint}") from error
    # A streaming reader would give each rank a share of the samples; here all have all, and the loader shares out.
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(reader, "dist_num_replicas"):
        reader.dist_rank, reader.dist_num_replicas = 0, 1
    if name.lower().startswith("hfids/"):
        reader.input_img_mode = None  # it would clip grey values above 255; images are decoded here
    return dataset


def _pairs(dataset: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(dataset, IterableDataset):
        yield from dataset
        return
    # timm's own dataset replaces an unreadable sample by the next one; its reader does not
    items = getattr(dataset, "reader", dataset)
    for index in range(len(items)):
        yield items[index]


def _read(where: str, dataset: Any, image_size: int | None, grey_bits: int | None = None) -> tuple[Tensor, Tensor]:
    """All images, uint8 (N, 3, S, S), and labels, int64 (N,)."""
    images: list[np.ndarray] = []
    targets: list[int] = []
    for index, (source, target) in enumerate(_pairs(dataset)):
        image = to_pixels(source, f"{where} sample {index}", image_size, grey_bits=grey_bits)
        if not images:
            check_memory(2 * len(dataset), 3, max(image.shape[1:]))  # once in the list, once stacked
        elif image.shape != images[0].shape:
            raise DataError(f"{where}: images differ in size, sample {index} from sample 0; give data.image_size")
        images.append(image)
        targets.append(_label(where, index, target))
    if not images:
        raise DataError(f"{where} holds no samples")
    return torch.from_numpy(np.stack(images)), torch.tensor(targets)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """The class names that a dataset declares, in label order; empty if it declares none."""
    if classes := getattr(dataset, "classes", None):
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in classes)
    labels = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return tuple(sorted(labels, key=lambda name: labels[name]))
