"""Datasets by name.

Shapes: N samples.
"""

from __future__ import annotations

import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

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
from disk_kd.data.stream import StreamedSplit, usual_workers
from disk_kd.data.timm_augment import NO_AUGMENT, TimmAugment
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


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    download: bool = False,
    validation: float = 0.1,
    seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    label_noise: float = 0.0,
    crop_pct: float = 1.0,
    grey_bits: int | None = None,
    skip_unreadable: bool = False,
    stream: Literal["auto"] | bool = "auto",
    timm: TimmAugment = NO_AUGMENT,
    workers: int | None = None,
) -> Dataset:
    """Opens a dataset: into memory, or so that files are read as they are needed.

    The choices below are functions of `seed` and of each sample's number in its original split alone.

    Args:
        name: one of `DATASETS`, NAME being the reader's own.
        root: the folder of the data; every source but `digits` and Hugging Face's needs it.
        image_size: side of the images; larger and smaller ones are scaled (bicubic, antialiased), the longer
            side of files cropped at the centre. None keeps their size, which must then be the same for all.
        download: fetch the data when it is missing. torchvision compares the MD5 of CIFAR's files with the
            published ones before it unpickles them.
        validation: share of the training samples set aside, each class in proportion, when the source
            brings no validation split; 0 sets none aside.
        seed: decides the validation split, `limit_train` and `label_noise`.
        limit_train: keeps that many of the training samples left, each class in proportion; all when
            there are fewer. It is at least the number of classes.
        limit_test: the same of the test samples; whatever the seed, the same ones.
        label_noise: share of the training labels replaced by another class. Validation and test stay clean.
        crop_pct: share of the shorter side that validation and test see of a file, in (0, 1].
        grey_bits: bits b, 9 … 16, that the values v of grey images of more than 8 bits use, which become
            round(255 v / (2^b - 1)); None refuses such images.
        skip_unreadable: leave out files that are no readable images, with a warning, instead of refusing them.
        stream: read files as they are needed; "auto": if `timm` is on, or they would take more than half of the
            memory that is free.
        timm: augmentation of streamed training files.
        workers: processes that decode streamed files; None: one for each core.

    Raises:
        ConfigError: for an unknown name or an option out of range, or images that are no files and are to be streamed.
        DataError: when the data is missing, unreadable, inconsistent or larger than memory.
    """
    _check_options(image_size, validation, label_noise, grey_bits)
    if not 0 < crop_pct <= 1:
        raise ConfigError(f"data.crop_pct is a share of the shorter side in (0, 1], got {crop_pct}")
    if timm.enabled and stream is False:
        raise ConfigError("data.timm augments streamed files; give data.stream=auto, or data.timm.enabled=false")
    parts = _open(name, None if root is None else str(Path(root).expanduser()), image_size, download, grey_bits)
    _check_classes(name, parts)
    _check_limits(name, parts, limit_train=limit_train, limit_test=limit_test)
    if parts.train.files is None and (crop_pct != 1 or skip_unreadable):
        option = "skip_unreadable=false" if skip_unreadable else "crop_pct=1"
        raise ConfigError(f"the images of {name} are no files: leave data.{option}")
    targets = parts.train.targets
    ids = torch.arange(len(targets))
    reading = Reading(image_size, 1.0, skip_unreadable, grey_bits)
    cropped = replace(reading, crop_pct=crop_pct)
    streams = _streams(name, parts, image_size, timm.enabled if stream == "auto" else stream, stream == "auto")
    workers = usual_workers() if workers is None else workers

    def part(samples: Samples, reading: Reading, ids: Tensor | None = None) -> AnySplit:
        return samples.stream(reading, ids, workers) if streams else samples.split(reading, ids)

    held_out = None if parts.validation is None else part(parts.validation, cropped)
    if held_out is None and validation:
        count = max(1, round(validation * len(ids)))
        ids, chosen = set_aside(targets, ids, count, VALIDATION, seed)
        if not len(ids):
            raise DataError(f"{name} has {count} training images, all of them set aside; lower data.validation")
        held_out = part(parts.train, cropped, chosen)
    if limit_train is not None:
        ids = ids[stratified(targets[ids], ids, limit_train, LIMIT, seed)]
    train = part(parts.train, reading, ids)
    _tell_empty_classes(name, "training", train)
    if isinstance(train, StreamedSplit):
        train = replace(train, timm=timm)
    if label_noise:
        noisy = flip_labels(train.targets, train.ids, label_noise, len(train.class_names), seed)
        train = replace(train, targets=noisy)
    test = None if parts.test is None else part(parts.test, cropped, _limited_test(parts.test, limit_test))
    if test is not None:
        _tell_empty_classes(name, "test", test)
    return Dataset(name, train, held_out, test, _NORMALISATION.get(name))


def _streams(name: str, parts: Parts, image_size: int | None, wanted: bool, auto: bool) -> bool:
    """Whether files are read as they are needed."""
    if parts.train.files is None:
        if wanted:
            raise ConfigError(f"the images of {name} are no files: leave data.stream and data.timm.enabled as they are")
        return False
    if auto and not wanted and image_size is not None:
        count = sum(len(samples.targets) for samples in parts if samples is not None)
        wanted = 3 * image_size**2 * count > psutil.virtual_memory().available // 2
    return wanted


def _limited_test(samples: Samples, limit: int | None) -> Tensor | None:
    ids = torch.arange(len(samples.targets))
    return None if limit is None else stratified(samples.targets, ids, limit, LIMIT, seed=0)


def _check_options(image_size: int | None, validation: float, label_noise: float, grey_bits: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise ConfigError(f"data.image_size is a side in pixels >= 1, got {image_size}")
    if not 0 <= validation < 1:
        raise ConfigError(f"data.validation is a share of the training samples in [0, 1), got {validation}")
    if not 0 <= label_noise <= 1:
        raise ConfigError(f"data.label_noise is a share of the training labels in [0, 1], got {label_noise}")
    if grey_bits is not None and not 9 <= grey_bits <= 16:
        raise ConfigError(f"data.grey_bits is a number of bits from 9 to 16, got {grey_bits}")


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


def _tell_empty_classes(name: str, kind: str, split: AnySplit) -> None:
    counts = split.targets.bincount(minlength=len(split.class_names))
    if empty := [shown(split.class_names[label]) for label in (counts == 0).nonzero().flatten().tolist()]:
        said = f"{len(empty)} of {len(counts)} classes have no {kind} image, such as {empty[0]}"
        warnings.warn(f"{name}: {said}", stacklevel=2)


def _open(name: str, root: str | None, image_size: int | None, download: bool, grey_bits: int | None) -> Parts:
    prefix, _, rest = name.partition("/")
    of_reader = prefix.lower() in READERS and bool(rest)
    if not of_reader and name not in DATASETS:
        raise ConfigError(f"data.name {name!r} is no dataset; {nearest(name.lower(), DATASETS)}")
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
    """scikit-learn's digits; the test split is the same for everyone, 30% of each class."""
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 … 16
    images = np.stack([to_pixels(Image.fromarray(image), "digits", image_size, "L") for image in pixels])
    targets = torch.from_numpy(bunch.target).to(torch.int64)
    count = round(0.3 * len(targets))
    split = set_aside(targets, torch.arange(len(targets)), count, TEST, seed=0)
    names = tuple(str(name) for name in bunch.target_names)
    train, test = (from_memory(torch.from_numpy(images)[part], targets[part], names) for part in split)
    return Parts(train, None, test)


def _cifar(name: str, root: str, image_size: int | None, download: bool) -> Parts:
    """Tars of class folders when `root` holds them, torchvision's copy otherwise."""
    train, test = (Path(root) / f"{name}-{part}.tar" for part in ("train", "test"))
    if train.is_file() and test.is_file():
        return Parts(class_samples(train), None, class_samples(test))
    return reader_parts(f"torch/{name}", root, image_size, download)
