"""Datasets by name.

Shapes: N samples.
"""

from __future__ import annotations

import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from disk_kd.data.choice import Chosen, choose
from disk_kd.data.dataset import AnySplit, Dataset
from disk_kd.data.decode import Reading, check_memory, to_pixels
from disk_kd.data.folders import class_samples, folder_parts, no_samples, tiny_imagenet_parts
from disk_kd.data.overlap import without_overlap
from disk_kd.data.own import own_parts
from disk_kd.data.readers import READERS, reader_parts
from disk_kd.data.samples import Parts, Samples, from_memory
from disk_kd.data.sampling import flip_labels, set_aside, stratified
from disk_kd.data.seeds import LIMIT, TEST
from disk_kd.data.settings import REST, DataSettings, unlabelled_path
from disk_kd.data.stream import StreamedSplit, usual_workers
from disk_kd.data.tables import TABLES, table_parts
from disk_kd.data.unlabelled import in_memory, joined, unlabelled_samples
from disk_kd.errors import ConfigError, DataError, nearest, shown
from disk_kd.plugins import is_user_code
from disk_kd.support import UNLABELLED

DATASETS: dict[str, str] = {
    "digits": "handwritten digits, 1,797 grey images of 8x8, 10 classes; comes with scikit-learn",
    "cifar10": "60,000 colour images of 32x32, 10 classes",
    "cifar100": "60,000 colour images of 32x32, 100 classes",
    "tiny-imagenet": "110,000 colour images of 64x64, 200 classes; the archive's own layout",
    "folder": "train, val and test: folders of class folders, or tars of them",
    "table": "a CSV or Parquet file of paths and labels; Parquet needs the package pyarrow",
    "none": "no labelled images; data.unlabelled gives images without labels",
    "torch/NAME": "a torchvision dataset, through timm's reader",
    "hfds/NAME": "a Hugging Face dataset; needs the package datasets",
    "hfids/NAME": "a streamed Hugging Face dataset; needs the package datasets",
    "tfds/NAME": "a TensorFlow dataset; needs the package tensorflow-datasets",
    "wds/NAME": "a WebDataset; needs the package webdataset",
    "my_module:make": "a function of yours that makes a dataset (docs/your-own.md)",
}
_NORMALISATION = {"tiny-imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)}


def load_dataset(name: str | DataSettings, **options: Any) -> Dataset:
    """Loads a dataset into memory, or prepares it for streaming.

    The validation split, the limits and the label noise depend only on `split_seed` and on each sample's number in its
    original split. torchvision compares the MD5 of CIFAR's files with the published ones before it
    unpickles them.

    Args:
        name: one of `DATASETS`, NAME being the reader's own; or all settings at once.
        options: fields of `DataSettings`, if `name` is a name.

    Raises:
        ConfigError: an unknown name, an option out of range, or streaming of images that are not files.
        DataError: the data is missing, unreadable, inconsistent or larger than memory.
    """
    data = replace(name, **options) if isinstance(name, DataSettings) else DataSettings(name, **options)
    workers = usual_workers() if data.workers is None else data.workers
    if data.timm.enabled and data.stream is False:
        raise ConfigError("data.timm augments streamed files; give data.stream=auto, or data.timm.enabled=false")
    parts = _open(data)
    _check_classes(data, parts)
    _check_limits(data, parts)
    reading = Reading(data.image_size, 1.0, data.skip_unreadable, data.grey_bits)
    cropped = replace(reading, crop_pct=data.crop_pct)
    chosen = choose(data, parts)
    test_ids = None if parts.test is None else _limited_test(parts.test, data.limit_test)
    if data.unlabelled not in (None, REST):
        parts, chosen = _with_unlabelled(data, parts, chosen, test_ids, reading)
    if parts.train.files is None and (data.crop_pct != 1 or data.skip_unreadable):
        option = "skip_unreadable=false" if data.skip_unreadable else "crop_pct=1"
        raise ConfigError(f"the images of {data.name} are not files: leave data.{option}")
    wanted = data.timm.enabled if data.stream == "auto" else data.stream
    streams = _streams(data.name, parts, data.image_size, wanted, data.stream == "auto")

    def part(samples: Samples, reading: Reading, ids: Tensor | None = None) -> AnySplit:
        return samples.stream(reading, ids, workers) if streams else samples.split(reading, ids)

    held_out = None if parts.validation is None else part(parts.validation, cropped)
    if chosen.validation is not None:
        held_out = part(parts.train, cropped, chosen.validation)
    train = part(chosen.without_labels(parts.train), reading, chosen.train)
    if isinstance(train, StreamedSplit):
        train = replace(train, timm=data.timm)
    if data.label_noise:
        train = _with_label_noise(train, data)
    _warn_empty_classes(data.name, "training", train)
    test = None if parts.test is None else part(parts.test, cropped, test_ids)
    if test is not None:
        _warn_empty_classes(data.name, "test", test)
    return Dataset(data.name, train, held_out, test, _NORMALISATION.get(data.name))


def _with_label_noise(train: AnySplit, data: DataSettings) -> AnySplit:
    known, targets = train.targets != UNLABELLED, train.targets.clone()
    classes = len(train.class_names)
    targets[known] = flip_labels(targets[known], train.ids[known], data.label_noise, classes, data.split_seed)
    return replace(train, targets=targets)


def _with_unlabelled(
    data: DataSettings, parts: Parts, chosen: Chosen, test_ids: Tensor | None, reading: Reading
) -> tuple[Parts, Chosen]:
    """The images of `data.unlabelled` after the training samples."""
    held_out: dict[str, tuple[Samples, Tensor | None]] = {}
    if parts.validation is not None:
        held_out["validation"] = parts.validation, None
    elif chosen.validation is not None:
        held_out["validation"] = parts.train, chosen.validation
    if parts.test is not None:
        held_out["test"] = parts.test, test_ids
    more = unlabelled_samples(data)
    if parts.train.images is not None:
        more = in_memory(more, parts.train.images, reading)
    more = without_overlap(more, held_out, data.overlap)
    ids = len(parts.train.targets) + torch.arange(len(more.targets))
    train = joined([parts.train, more])
    return parts._replace(train=train), chosen.with_unlabelled(ids, data)


def _streams(name: str, parts: Parts, image_size: int | None, wanted: bool, auto: bool) -> bool:
    """Whether files are streamed."""
    if parts.train.files is None:
        if wanted:
            raise ConfigError(
                f"the images of {name} are not files: leave data.stream and data.timm.enabled as they are"
            )
        return False
    if auto and not wanted and image_size is not None:
        count = sum(len(samples.targets) for samples in parts if samples is not None)
        wanted = 3 * image_size**2 * count > psutil.virtual_memory().available // 2
    return wanted


def _limited_test(samples: Samples, limit: int | None) -> Tensor | None:
    ids = torch.arange(len(samples.targets))
    return None if limit is None else stratified(samples.targets, ids, limit, LIMIT, seed=0)


def _check_limits(data: DataSettings, parts: Parts) -> None:
    count = len(parts.train.class_names)
    for option in ("limit_train", "limit_test"):
        limit = getattr(data, option)
        if limit is not None and limit < count:
            raise ConfigError(f"data.{option} is at least the number of classes, {count}, got {limit}")
    if data.limit_test is not None and parts.test is None:
        raise ConfigError(f"{data.name} has no test split: leave data.limit_test")


def _check_classes(data: DataSettings, parts: Parts) -> None:
    name, ours = data.name, set(parts.train.class_names)
    if not ours:
        raise DataError(
            "no image has a label, so the classes are not known; give a teacher that was trained here, or data.classes"
        )
    if len(ours) < 2:
        raise DataError(f"{name} has one class, {parts.train.class_names[0]}; at least two are needed")
    for part, samples in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        if samples is None:
            continue
        alike: dict[str, str] = {}
        for own in ours | set(samples.class_names):
            if (other := alike.setdefault(unicodedata.normalize("NFC", own).strip(), own)) != own:
                one, two = sorted(map(ascii, (own, other)))
                raise DataError(f"{name}: the classes {one} and {two} look the same; rename one, or join them")
        if differing := ours ^ set(samples.class_names):
            listed = ", ".join(sorted(differing)[:5])
            raise DataError(f"{name}: train and {part} are expected to have the same classes; only one has {listed}")


def _warn_empty_classes(name: str, kind: str, split: AnySplit) -> None:
    counts = split.targets[split.targets != UNLABELLED].bincount(minlength=len(split.class_names))
    if not int(counts.sum()):
        return
    if empty := [shown(split.class_names[label]) for label in (counts == 0).nonzero().flatten().tolist()]:
        message = f"{len(empty)} of {len(counts)} classes have no {kind} image, such as {empty[0]}"
        warnings.warn(f"{name}: {message}", stacklevel=2)


def _open(data: DataSettings) -> Parts:
    name, image_size, download, grey_bits = data.name, data.image_size, data.download, data.grey_bits
    root = None if data.root is None else str(Path(data.root).expanduser())
    prefix, _, rest = name.partition("/")
    of_reader = prefix.lower() in READERS and bool(rest)
    if not of_reader and is_user_code(name):
        return own_parts(data)
    if not of_reader and name not in DATASETS:
        raise ConfigError(f"data.name {name!r} is not a dataset; {nearest(name.lower(), DATASETS)}")
    if name == "none":
        if data.unlabelled in (None, REST):
            raise ConfigError("data.name none has no labelled images; give data.unlabelled, a folder of images")
        return Parts(no_samples(data.classes or ()), None, None)
    if name == "digits":
        if grey_bits is not None:
            raise ConfigError("the images of digits have 8 bits: leave data.grey_bits")
        return _digits(image_size)
    if of_reader and prefix.lower() not in ("torch", "wds"):
        return reader_parts(name, root, image_size, download, grey_bits)
    if root is None:
        needed = "file of the table" if name == "table" else "folder of its data"
        raise DataError(f"{name} needs data.root, the {needed}")
    if name == "table":
        return _table(Path(root), data)
    fetched = of_reader or name in ("cifar10", "cifar100")
    if not Path(root).is_dir() and not (fetched and download):
        hint = "; give data.download=true to fetch the data" if fetched else ""
        raise DataError(f"{name}: there is no folder data.root {root}{hint}")
    if name == "folder":
        return folder_parts(Path(root), unlabelled_path(data))
    if name == "tiny-imagenet":
        return tiny_imagenet_parts(Path(root))
    if of_reader:
        return reader_parts(name, root, image_size, download, grey_bits)
    return _cifar(name, root, image_size, download)


def _table(file: Path, data: DataSettings) -> Parts:
    if not file.is_file():
        raise DataError(f"table: there is no file data.root {file}; give a table ({', '.join(TABLES)})")
    if file.suffix.lower() not in TABLES:
        raise DataError(f"table: data.root {file} is expected to end in {', '.join(TABLES)}")
    return table_parts(file, data.table, unlabelled=data.unlabelled == REST, skip_missing=data.skip_unreadable)


def _digits(image_size: int | None) -> Parts:
    """scikit-learn's digits. The test split is always the same: 30 % of each class."""
    from sklearn.datasets import load_digits  # here, because scikit-learn takes two seconds to import

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 … 16
    images = pixels[:, None]
    if image_size is not None and image_size != images.shape[-1]:
        check_memory(2 * len(pixels), 1, image_size)  # once in the list, once stacked
        images = np.stack([to_pixels(Image.fromarray(image), "digits", image_size, "L") for image in pixels])
    targets = torch.from_numpy(bunch.target).to(torch.int64)
    count = round(0.3 * len(targets))
    split = set_aside(targets, torch.arange(len(targets)), count, TEST, seed=0)
    names = tuple(str(name) for name in bunch.target_names)
    train, test = (from_memory(torch.from_numpy(images)[part], targets[part], names) for part in split)
    return Parts(train, None, test)


def _cifar(name: str, root: str, image_size: int | None, download: bool) -> Parts:
    """Tars of class folders if `root` has them, else torchvision's copy."""
    train, test = (Path(root) / f"{name}-{part}.tar" for part in ("train", "test"))
    if train.is_file() and test.is_file():
        return Parts(class_samples(train), None, class_samples(test))
    return reader_parts(f"torch/{name}", root, image_size, download)
