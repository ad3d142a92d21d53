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
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from disk_kd.data.dataset import AnySplit, Dataset
from disk_kd.data.decode import Reading, to_pixels
from disk_kd.data.folders import class_samples, folder_parts, tiny_imagenet_parts
from disk_kd.data.readers import READERS, reader_parts
from disk_kd.data.samples import Parts, Samples, from_memory
from disk_kd.data.sampling import flip_labels, set_aside, stratified
from disk_kd.data.seeds import LIMIT, TEST, VALIDATION
from disk_kd.data.settings import DataSettings
from disk_kd.data.stream import StreamedSplit, usual_workers
from disk_kd.errors import ConfigError, DataError, nearest, shown

DATASETS: dict[str, str] = {
    "digits": "handwritten digits, 1,797 grey images of 8x8, 10 classes; comes with scikit-learn",
    "cifar10": "60,000 colour images of 32x32, 10 classes",
    "cifar100": "60,000 colour images of 32x32, 100 classes",
    "tiny-imagenet": "110,000 colour images of 64x64, 200 classes; the archive's own layout",
    "folder": "train, val and test: folders of class folders, or tars of them",
    "torch/NAME": "a torchvision dataset, through timm's reader",
    "hfds/NAME": "a Hugging Face dataset; needs the package datasets",
    "hfids/NAME": "a streamed Hugging Face dataset; needs the package datasets",
    "tfds/NAME": "a TensorFlow dataset; needs the package tensorflow-datasets",
    "wds/NAME": "a WebDataset; needs the package webdataset",
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
    name, workers = data.name, usual_workers() if data.workers is None else data.workers
    if data.timm.enabled and data.stream is False:
        raise ConfigError("data.timm augments streamed files; give data.stream=auto, or data.timm.enabled=false")
    root = None if data.root is None else str(Path(data.root).expanduser())
    parts = _open(name, root, data.image_size, data.download, data.grey_bits)
    _check_classes(name, parts)
    _check_limits(name, parts, limit_train=data.limit_train, limit_test=data.limit_test)
    if parts.train.files is None and (data.crop_pct != 1 or data.skip_unreadable):
        option = "skip_unreadable=false" if data.skip_unreadable else "crop_pct=1"
        raise ConfigError(f"the images of {name} are not files: leave data.{option}")
    targets = parts.train.targets
    ids = torch.arange(len(targets))
    reading = Reading(data.image_size, 1.0, data.skip_unreadable, data.grey_bits)
    cropped = replace(reading, crop_pct=data.crop_pct)
    wanted = data.timm.enabled if data.stream == "auto" else data.stream
    streams = _streams(name, parts, data.image_size, wanted, data.stream == "auto")

    def part(samples: Samples, reading: Reading, ids: Tensor | None = None) -> AnySplit:
        return samples.stream(reading, ids, workers) if streams else samples.split(reading, ids)

    held_out = None if parts.validation is None else part(parts.validation, cropped)
    if held_out is None and data.validation:
        count = max(1, round(data.validation * len(ids)))
        ids, chosen = set_aside(targets, ids, count, VALIDATION, data.split_seed)
        if not len(ids):
            raise DataError(f"the validation split takes all {count} training images of {name}; lower data.validation")
        held_out = part(parts.train, cropped, chosen)
    if data.limit_train is not None:
        ids = ids[stratified(targets[ids], ids, data.limit_train, LIMIT, data.split_seed)]
    train = part(parts.train, reading, ids)
    _warn_empty_classes(name, "training", train)
    if isinstance(train, StreamedSplit):
        train = replace(train, timm=data.timm)
    if data.label_noise:
        noisy = flip_labels(train.targets, train.ids, data.label_noise, len(train.class_names), data.split_seed)
        train = replace(train, targets=noisy)
    test = None if parts.test is None else part(parts.test, cropped, _limited_test(parts.test, data.limit_test))
    if test is not None:
        _warn_empty_classes(name, "test", test)
    return Dataset(name, train, held_out, test, _NORMALISATION.get(name))


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


def _check_limits(name: str, parts: Parts, **limits: int | None) -> None:
    count = len(parts.train.class_names)
    for option, limit in limits.items():
        if limit is not None and limit < count:
            raise ConfigError(f"data.{option} is at least the number of classes, {count}, got {limit}")
    if limits["limit_test"] is not None and parts.test is None:
        raise ConfigError(f"{name} has no test split: leave data.limit_test")


def _check_classes(name: str, parts: Parts) -> None:
    ours = set(parts.train.class_names)
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
    counts = split.targets.bincount(minlength=len(split.class_names))
    if empty := [shown(split.class_names[label]) for label in (counts == 0).nonzero().flatten().tolist()]:
        message = f"{len(empty)} of {len(counts)} classes have no {kind} image, such as {empty[0]}"
        warnings.warn(f"{name}: {message}", stacklevel=2)


def _open(name: str, root: str | None, image_size: int | None, download: bool, grey_bits: int | None) -> Parts:
    prefix, _, rest = name.partition("/")
    of_reader = prefix.lower() in READERS and bool(rest)
    if not of_reader and name not in DATASETS:
        raise ConfigError(f"data.name {name!r} is not a dataset; {nearest(name.lower(), DATASETS)}")
    if name == "digits":
        if grey_bits is not None:
            raise ConfigError("the images of digits have 8 bits: leave data.grey_bits")
        return _digits(image_size)
    if of_reader and prefix.lower() not in ("torch", "wds"):
        return reader_parts(name, root, image_size, download, grey_bits)
    if root is None:
        raise DataError(f"{name} needs data.root, the folder of its data")
    fetched = of_reader or name in ("cifar10", "cifar100")
    if not Path(root).is_dir() and not (fetched and download):
        hint = "; give data.download=true to fetch the data" if fetched else ""
        raise DataError(f"{name}: there is no folder data.root {root}{hint}")
    if name == "folder":
        return folder_parts(Path(root))
    if name == "tiny-imagenet":
        return tiny_imagenet_parts(Path(root))
    if of_reader:
        return reader_parts(name, root, image_size, download, grey_bits)
    return _cifar(name, root, image_size, download)


def _digits(image_size: int | None) -> Parts:
    """scikit-learn's digits. The test split is always the same: 30 % of each class."""
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 … 16
    images = pixels[:, None]
    if image_size not in (None, images.shape[-1]):
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
