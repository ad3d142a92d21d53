"""Settings of the data: the dataset, its splits and its augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from disk_kd.data.augment import Augment
from disk_kd.data.mix import Mix
from disk_kd.data.table_settings import TableSettings
from disk_kd.data.timm_augment import TimmAugment
from disk_kd.errors import ConfigError
from disk_kd.files import user_path
from disk_kd.options import environment

_READERS = ("torch", "hfds", "hfids", "tfds", "wds")
_LIMITS = ("limit_train", "limit_test", "limit_unlabelled")
_OF_UNLABELLED = {
    "unlabelled_share": "auto",
    "limit_unlabelled": None,
    "unlabelled_confidence": 0.0,
    "overlap": "error",
}
"""Defaults of the settings that need unlabelled images."""
REST = "rest"
"""`data.unlabelled`: training images of the dataset itself whose labels are not used."""
Overlap = Literal["error", "leave-out", "keep"]
"""What to do with unlabelled images that are in a held-out split too."""


@dataclass(frozen=True)
class DataSettings:
    """The dataset and its augmentation.

    Args:
        name: Name of the dataset: one of `disk-kd list datasets`, or a timm reader such as hfds/user/name.
            my_module:make calls your own function.
        root: Folder that holds the dataset, or the file of a table. Without a name, a folder is read as the dataset
            folder and a file as the dataset table. The default dataset, digits, needs none.
        image_size: Image side in pixels; larger and smaller images are resized to it. null keeps the size of the
            images.
        download: Allow the download of the dataset to `root`.
        validation: Fraction of the training samples of each class that form the validation split. The best checkpoint
            is chosen on this split.
        limit_train: Maximum number of training samples, balanced over the classes. null keeps all.
        limit_test: Maximum number of test samples, balanced over the classes and the same for every seed. null keeps
            all.
        label_noise: Fraction of the training labels that are replaced by a wrong label.
        split_seed: Random seed of the validation split, the sample limits and the label noise.
        views: Number of different augmentations ("views") of each sample. Epochs use them in turn. null draws a new
            augmentation in each epoch.
        view_seed: Random seed of the augmentations. Runs with the same view_seed and different train.seed can share one
            teacher store.
        augment: Augmentation of images, in memory or streamed.
        crop_pct: Fraction of the shorter image side that the centre crop keeps in evaluation. It applies to image
            files.
        grey_bits: Number of bits b (9 to 16) that 16-bit grey images use. Values v are scaled to 8 bits as 255 v / (2^b
            - 1). Many cameras and scanners use 12 bits; give 16 for the full range. null refuses 16-bit images.
        stream: Read image files during training instead of loading them into memory first. auto streams if data.timm is
            enabled, or if the images would take more than half of the free memory.
        timm: timm's augmentation of streamed training files.
        workers: Number of worker processes that decode streamed files. null uses one for each available core.
        skip_unreadable: Skip damaged image files with a warning. false stops with an error.
        mix: Mixup and cutmix of training batches.
        unlabelled: Images without labels to learn from: a folder (all images in it, at any depth), a tar, a table, or
            hfds/… or wds/…. rest takes the training images that limit_train leaves out, without their labels.
        unlabelled_share: Share of unlabelled images in the batches, from 0 to 1. auto shuffles all images together, so
            that each is seen once in an epoch.
        limit_unlabelled: Maximum number of unlabelled images, drawn at random. null keeps all.
        unlabelled_confidence: Least probability that the teacher must give its first class for an unlabelled image to
            count in the teacher's part of the loss, from 0 to 1. 0 counts all.
        sampling: shuffle draws each image once in an epoch. balanced draws each class equally often; the images of rare
            classes then repeat within an epoch.
        overlap: What to do if unlabelled images have the same bytes as images of the validation or test split: error,
            leave-out or keep.
        classes: Names of the classes in label order, for the dataset none, in which no image has a label. null takes
            those that the teacher's weights record.
        table: Columns of tables.
    """

    name: str = "digits"
    root: Path | None = None
    image_size: int | None = None
    download: bool = environment(False)
    validation: float = 0.1
    limit_train: int | None = None
    limit_test: int | None = None
    label_noise: float = 0.0
    split_seed: int = 0
    views: int | None = None
    view_seed: int = 0
    augment: Augment = field(default_factory=Augment)
    crop_pct: float = 1.0
    grey_bits: int | None = None
    stream: Literal["auto"] | bool = environment("auto")
    timm: TimmAugment = field(default_factory=TimmAugment)
    workers: int | None = environment(None)
    skip_unreadable: bool = False
    mix: Mix = field(default_factory=Mix)
    unlabelled: str | None = None
    unlabelled_share: Literal["auto"] | float = "auto"
    limit_unlabelled: int | None = None
    unlabelled_confidence: float = 0.0
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    overlap: Overlap = "error"
    classes: tuple[str, ...] | None = None
    table: TableSettings = field(default_factory=TableSettings)

    def __post_init__(self) -> None:
        ranges = {"image_size": (1, 10_000), "views": (1, 1_000_000), "grey_bits": (9, 16)}
        for name, (least, most) in (ranges | dict.fromkeys(_LIMITS, (1, math.inf))).items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                upper = f"from {least} to {most:,}" if most < math.inf else f"at least {least}"
                raise ConfigError(f"data.{name} must be {upper}, or null, not {value}")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"data.validation must be a share in [0, 1), not {self.validation}")
        if self.unlabelled_share != "auto" and not 0 <= self.unlabelled_share <= 1:
            raise ConfigError(f"data.unlabelled_share must be a share in [0, 1], or auto, not {self.unlabelled_share}")
        if not 0 <= self.unlabelled_confidence <= 1:
            raise ConfigError(
                f"data.unlabelled_confidence must be a probability in [0, 1], not {self.unlabelled_confidence}"
            )
        for name, default in _OF_UNLABELLED.items():
            if self.unlabelled is None and getattr(self, name) != default:
                raise ConfigError(f"data.{name} needs unlabelled images; give data.unlabelled, or leave it out")
        if self.classes is not None and self.name != "none":
            raise ConfigError(f"data.classes is for the dataset none; {self.name} names its classes itself")
        if not 0 <= self.label_noise <= 1:
            raise ConfigError(f"data.label_noise must be a share in [0, 1], not {self.label_noise}")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"data.crop_pct must be a share of the shorter side in (0, 1], not {self.crop_pct}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"data.workers must be at least 0 or null, not {self.workers}")


def dataset_name(data: Mapping[str, Any]) -> str:
    """The dataset of options that name none: by the kind of `root`, or of no labelled images at all.

    Args:
        data: options of the data, by name.
    """
    root, unlabelled = data.get("root"), data.get("unlabelled")
    if root is not None:
        return "table" if Path(str(root)).suffix.lower() in (".csv", ".tsv", ".parquet") else "folder"
    return "digits" if unlabelled in (None, REST) else "none"


def unlabelled_path(data: DataSettings) -> Path | None:
    """The folder or file that `data.unlabelled` names; None if it names no file.

    A path that does not exist is looked for in `data.root` too.
    """
    if data.unlabelled in (None, REST):
        return None
    assert data.unlabelled is not None
    path = user_path(data.unlabelled)
    inside = None if data.root is None else user_path(data.root) / path
    if not path.exists() and inside is not None and inside.exists():
        return inside
    prefix, _, rest = data.unlabelled.partition("/")
    return None if prefix.lower() in _READERS and rest and not path.exists() else path


def with_absolute_paths(data: DataSettings) -> DataSettings:
    """The same with absolute paths, so that a run can be repeated from another folder."""
    unlabelled, folder = unlabelled_path(data), data.table.folder
    return replace(
        data,
        root=None if data.root is None else user_path(data.root).absolute(),
        unlabelled=data.unlabelled if unlabelled is None else str(unlabelled.absolute()),
        table=data.table if folder is None else replace(data.table, folder=user_path(folder).absolute()),
    )
