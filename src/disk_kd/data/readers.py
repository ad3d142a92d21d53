"""timm's dataset readers (`torch/…`, `hfds/…`, `hfids/…`, `tfds/…`, `wds/…`), read into memory.

Load before a process group starts: timm's streaming readers give each rank a share of the samples.
Hugging Face's readers fetch what their cache lacks whether or not a download was asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import IterableDataset

from disk_kd.data.decode import check_memory, to_pixels
from disk_kd.data.folders import folder_parts
from disk_kd.data.samples import Parts, Samples, from_memory
from disk_kd.errors import DataError

# prefix -> (module it needs, what to install)
READERS = {
    "torch": ("torchvision", "torchvision"),
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
    "wds": ("webdataset", "webdataset"),
}


def reader_parts(name: str, root: str | None, image_size: int | None, download: bool) -> Parts:
    """Reads the splits of a timm dataset name.

    `torch/…` sets have one held-out split, their test split. The other readers are asked for `train`,
    `validation` and `test`; when only one of the last two is there with labels it is the test split.

    Raises:
        DataError: when the reader's package or data are missing, or an image or label is not usable.
    """
    prefix = name.split("/")[0].lower()
    module, packages = READERS[prefix]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{name} needs the package {module}: pip install {packages}") from error
    if name.lower() in ("torch/image_folder", "torch/folder") and root is not None:
        return folder_parts(Path(root))
    held_out = ("validation",) if prefix == "torch" else ("validation", "test")
    train = _open(name, root, "train", download)
    read = {"train": _read(f"{name} train", train, image_size)}
    for part in held_out:
        if (dataset := _open(name, root, part, download)) is not None:
            images, targets = _read(f"{name} {part}", dataset, image_size)
            if int(targets.min()) >= 0:  # public test sets often come with labels of -1
                read[part] = images, targets
    highest = max(int(targets.max()) for _, targets in read.values())
    names = _class_names(train) or tuple(str(label) for label in range(highest + 1))
    return _arrange({part: from_memory(images, targets, names) for part, (images, targets) in read.items()})


def _arrange(splits: dict[str, Samples]) -> Parts:
    """A held-out split that is alone is the test split, so that what selects never also reports."""
    if "test" not in splits:
        return Parts(splits["train"], None, splits.get("validation"))
    return Parts(splits["train"], splits.get("validation"), splits["test"])


def _open(name: str, root: str | None, split: str, download: bool) -> Any:
    """timm's dataset; None when it says that a held-out split does not exist."""
    try:
        return create_dataset(name, root=root, split=split, download=download)
    except Exception as error:  # every reader raises its own kind
        said = " ".join(str(error).split()) or type(error).__name__
        if split != "train" and "split" in said.lower():
            return None
        hint = "" if download else "; give data.download=true to fetch it"
        raise DataError(f"{name} cannot be opened by timm with root {root}: {said}{hint}") from error


def _pairs(dataset: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(dataset, IterableDataset):
        yield from dataset
        return
    # timm's own dataset replaces an unreadable sample by the next one; its reader does not
    items = getattr(dataset, "reader", dataset)
    for index in range(len(items)):
        yield items[index]


def _read(where: str, dataset: Any, image_size: int | None) -> tuple[Tensor, Tensor]:
    """All images, uint8 (N, 3, S, S), and labels, int64 (N,)."""
    images: list[np.ndarray] = []
    targets: list[int] = []
    for index, (source, target) in enumerate(_pairs(dataset)):
        image = to_pixels(source, f"{where} sample {index}", image_size)
        if not images:
            check_memory(2 * len(dataset), 3, max(image.shape[1:]))  # once in the list, once stacked
        elif image.shape != images[0].shape:
            raise DataError(f"{where}: images differ in size, sample {index} from sample 0; give data.image_size")
        images.append(image)
        try:
            targets.append(int(target))
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: one whole label an image is expected, sample {index} has {target!r}") from error
    if not images:
        raise DataError(f"{where} holds no samples")
    return torch.from_numpy(np.stack(images)), torch.tensor(targets)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """The names a dataset declares, in label order; none when it declares none."""
    if classes := getattr(dataset, "classes", None):
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in classes)
    labels = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return tuple(sorted(labels, key=lambda name: labels[name]))
