"""Datasets of a user's own, my_module:make_dataset.

The function is called with those of `root`, `image_size`, `download` and `split_seed` that its signature has. It
returns the training split; or a mapping, or an object, with `train` and, where they exist, `validation` and `test`. A
split is one of these:

- a dataset with a length whose items are (image, label), as torchvision's are;
- a pair (images, labels) of equal length.

An image is a path, a PIL image, or uint8 pixels: an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W). The
images of a pair may also be one array or tensor of pixels, which then stays in memory. A label is a number or the name
of a class. The names of the classes, in label order, are `classes` of the mapping, of the object or of the training
split; without them labels are named by their numbers.

Shapes: N samples, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import IterableDataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader

from disk_kd.data.decode import Mode, to_pixels
from disk_kd.data.folders import SPELLINGS
from disk_kd.data.samples import Parts, Samples, from_memory
from disk_kd.data.settings import REST, DataSettings
from disk_kd.data.tables import class_order
from disk_kd.errors import ConfigError, DataError, nearest, one_line, shown
from disk_kd.plugins import find_user_code, user_code_location
from disk_kd.support import UNLABELLED

KEYWORDS = ("root", "image_size", "download", "split_seed")
"""What a function may be called with: settings of the data with the same names."""

_FORMS = "a dataset of (image, label), or a pair (images, labels) of equal length"
_IMAGES = "a path, a PIL image or uint8 pixels (an array H x W x C or a tensor C x H x W)"


class _Items(NamedTuple):
    """A split as the user gives it: images by number, and labels, which may be names or None."""

    images: Any
    labels: list[Any]


def own_parts(data: DataSettings) -> Parts:
    """The splits of a user's dataset.

    Args:
        data: its `name` is my_module:make_dataset.

    Raises:
        ConfigError: there is no such function, or it does not take a keyword that was set.
        DataError: it fails, or returns something else than the splits of a dataset.
    """
    made = _call(data)
    found = _splits(data.name, made)
    items = {split: _items(f"{data.name} {split}", given) for split, given in found.items()}
    classes = _classes(data.name, made, found["train"], items["train"].labels)
    parts = {
        split: _samples(f"{data.name} {split}", each, classes, data, data.unlabelled == REST and split == "train")
        for split, each in items.items()
    }
    return Parts(parts["train"], parts.get("validation"), parts.get("test"))


def _call(data: DataSettings) -> Any:
    """What the user's function returns."""
    make = find_user_code(data.name, "dataset")
    if not callable(make):
        raise ConfigError(f"{data.name} is a {type(make).__name__}; give a function that makes the dataset")
    parameters = inspect.signature(make).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {key: getattr(data, key) for key in KEYWORDS if anything or key in parameters}
    for key, default in (("root", None), ("download", False)):
        if key not in given and getattr(data, key) != default:
            raise ConfigError(f"{data.name} takes no keyword {key}; add it to the function, or leave out data.{key}")
    try:
        return make(**given)
    except Exception as error:  # a user's function can fail in any way at all
        place = user_code_location(error)
        reason = f"{type(error).__name__}: {one_line(error)}{f', {place}' if place else ''}"
        raise DataError(f"{data.name} fails with the keywords {', '.join(given) or 'none'} ({reason})") from error


def _splits(name: str, made: Any) -> dict[str, Any]:
    """The splits by name: those of a mapping or of an object; anything else is the training split."""
    if isinstance(made, Mapping):
        given = {str(key): value for key, value in made.items() if key != "classes" and value is not None}
    elif hasattr(made, "train") and not hasattr(made, "__getitem__"):
        spellings = [word for words in SPELLINGS.values() for word in words]
        given = {word: getattr(made, word) for word in spellings if getattr(made, word, None) is not None}
    else:
        given = {"train": made}
    found: dict[str, Any] = {}
    for key, value in given.items():
        split = next((split for split, words in SPELLINGS.items() if key.lower() in words), None)
        if split is None or split in found:
            raise DataError(f"{name} gives a split {key!r}; give train, validation and test, each once, and classes")
        found[split] = value
    if "train" not in found:
        raise DataError(f"{name} gives no train split, but {', '.join(found) or 'nothing'}; {nearest('train', found)}")
    return found


def _items(where: str, given: Any) -> _Items:
    """Images and labels of a split."""
    if isinstance(given, tuple) and len(given) == 2:
        images, labels = given
        if not all(hasattr(part, "__len__") for part in given) or len(images) != len(labels):
            raise DataError(f"{where} is a pair of {_kind(images)} and {_kind(labels)}; {_FORMS} is expected")
        found = _Items(images, _listed(labels))
    elif isinstance(given, IterableDataset) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise DataError(f"{where} is a {_kind(given)} without a length or without items; {_FORMS} is expected")
    elif _is_plain_folder(given):
        found = _Items([path for path, _ in given.samples], list(given.targets))
    else:
        found = _Items(_ImagesOf(given), [])
    if not len(found.images):
        raise DataError(f"{where} holds no samples; {_FORMS} is expected")
    return found if found.labels else _Items(found.images, _labels(where, given))


def _is_plain_folder(dataset: Any) -> bool:
    """Whether a dataset is torchvision's for folders, and changes no image. Its files are then read as files."""
    return (
        isinstance(dataset, DatasetFolder)
        and dataset.loader is default_loader
        and not any(getattr(dataset, key, None) for key in ("transform", "target_transform", "transforms"))
    )


class _ImagesOf:
    """The images of a dataset of (image, label), by number."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        return self.dataset[number][0]


def _labels(where: str, dataset: Any) -> list[Any]:
    """The labels of a dataset: from its `targets` if it has them, else by reading every item once."""
    stated = _stated_labels(dataset)
    first = _item(where, dataset, 0)
    if stated is not None and stated[0] == _plain(first[1]):
        return stated
    return [_plain(first[1]), *(_plain(_item(where, dataset, number)[1]) for number in range(1, len(dataset)))]


def _stated_labels(dataset: Any) -> list[Any] | None:
    if isinstance(dataset, Subset):
        inner: Any = dataset.dataset
        labels = _stated_labels(inner)
        return None if labels is None else [labels[number] for number in dataset.indices]
    labels = getattr(dataset, "targets", None)
    labels = getattr(dataset, "labels", None) if labels is None else labels
    if labels is None or getattr(dataset, "target_transform", None) is not None or not hasattr(labels, "__len__"):
        return None
    return _listed(labels) if len(labels) == len(dataset) else None


def _item(where: str, dataset: Any, number: int) -> Any:
    try:
        item = dataset[number]
    except Exception as error:  # a user's dataset can fail in any way at all
        place = user_code_location(error)
        reason = f"{type(error).__name__}: {one_line(error)}{f', {place}' if place else ''}"
        raise DataError(f"{where} sample {number} cannot be read ({reason}); correct the dataset") from error
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(f"{where} sample {number} is a {_kind(item)}; a pair (image, label) is expected")
    return item


def _listed(labels: Any) -> list[Any]:
    return [_plain(label) for label in labels]


def _plain(label: Any) -> Any:
    """A label as a Python number or name; arrays and tensors of one number count as the number."""
    return label.item() if hasattr(label, "item") and getattr(label, "size", None) is not None else label


def _classes(name: str, made: Any, train: Any, labels: Sequence[Any]) -> tuple[str, ...]:
    """The class names in label order."""
    while isinstance(train, Subset):
        train = train.dataset
    stated = made.get("classes") if isinstance(made, Mapping) else getattr(made, "classes", None)
    stated = getattr(train, "classes", None) if stated is None else stated
    if stated is not None:
        classes = tuple(each if isinstance(each, str) else ", ".join(map(str, np.atleast_1d(each))) for each in stated)
        if len(set(classes)) < len(classes):
            raise DataError(f"{name} names a class twice in classes, {_twice(classes)}; name each once")
        return classes
    known = {label for label in labels if label is not None}
    if known and all(isinstance(label, str) for label in known):
        return class_order(known)
    numbers = [label for label in known if isinstance(label, int)]
    count = max(numbers, default=0) + 1
    if missing := sorted(set(range(count)) - known):
        raise DataError(f"{name}: no training image has label {missing[0]}, but one has {count - 1}; give classes too")
    return tuple(map(str, range(count)))


def _twice(names: Sequence[str]) -> str:
    return next(repr(name) for place, name in enumerate(names) if name in names[:place])


def _samples(where: str, items: _Items, classes: tuple[str, ...], data: DataSettings, unlabelled: bool) -> Samples:
    number_of = {name: number for number, name in enumerate(classes)}
    targets = [_target(where, number, label, number_of, unlabelled) for number, label in enumerate(items.labels)]
    if isinstance(items.images, Tensor | np.ndarray):
        return from_memory(
            _in_size(where, _pixels(where, items.images), data.image_size), torch.tensor(targets), classes
        )
    files, names = OwnFiles(items.images), _names(where, items.images)
    try:
        files(0)
    except OSError as error:
        raise DataError(f"{names[0]}, the first image of {where}, cannot be read: {error.strerror or error}") from error
    return Samples(classes, torch.tensor(targets), files, names)


def _target(where: str, number: int, label: Any, number_of: Mapping[str, int], unlabelled: bool) -> int:
    if label is None:
        if unlabelled:
            return UNLABELLED
        raise DataError(f"{where} sample {number} has no label; give one, or data.unlabelled=rest in the train split")
    if isinstance(label, str):
        if label not in number_of:
            raise DataError(f"{where} sample {number} has the class {label!r}; {nearest(label, number_of)}")
        return number_of[label]
    if not isinstance(label, int) or not 0 <= label < len(number_of):
        raise DataError(
            f"{where} sample {number} has the label {label!r}; a number in 0 … {len(number_of) - 1} or the name of a"
            " class is expected"
        )
    return int(label)


def _names(where: str, images: Any) -> tuple[str, ...]:
    """The paths of the images; their numbers where they are no files."""
    if isinstance(images, _ImagesOf):
        return tuple(f"{where} sample {number}" for number in range(len(images)))
    return tuple(
        shown(str(image)) if isinstance(image, str | Path) else f"{where} sample {number}"
        for number, image in enumerate(images)
    )


class OwnFiles:
    """The images of a user's dataset as contents of image files, by number. Its items are read one at a time.

    Args:
        images: images by number.
    """

    def __init__(self, images: Any) -> None:
        self.images = images
        self._lock = Lock()  # a dataset need not allow several threads

    def __call__(self, number: int) -> bytes:
        """The content of a file with the image; an image in memory is written without loss."""
        image = self._image(number)
        return Path(image).read_bytes() if isinstance(image, str | Path) else _encoded(image)

    def stamp(self, number: int) -> str:
        """Size and modification time of a file, else the hash of the image."""
        image = self._image(number)
        if isinstance(image, str | Path):
            about = os.stat(image)
            return f"{about.st_size} {about.st_mtime_ns}"
        return hashlib.sha256(_encoded(image)).hexdigest()

    def _image(self, number: int) -> Any:
        try:
            with self._lock:
                return self.images[number]
        except OSError:
            raise
        except Exception as error:  # a user's dataset can fail in any way at all
            raise OSError(f"{type(error).__name__}: {one_line(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"images": self.images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["images"])  # type: ignore[misc]


def _encoded(image: Any) -> bytes:
    """An image in memory as the content of a file, without loss.

    Raises:
        OSError: it is no image.
    """
    if isinstance(image, bytes):
        return image
    picture = image if isinstance(image, Image.Image) else _picture(image)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")
    content = io.BytesIO()
    picture.save(content, "PPM" if picture.mode in ("L", "RGB") else "PNG")  # PPM takes no time
    return content.getvalue()


def _picture(image: Any) -> Image.Image:
    """Pixels as a PIL image."""
    pixels = image.cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        kind = f"{_kind(image)} of {image.dtype}" if hasattr(image, "dtype") else _kind(image)
        raise OSError(f"it is a {kind}; {_IMAGES} is expected, without a transform that normalises or augments")
    if isinstance(image, Tensor) and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise OSError(f"it has the shape {tuple(image.shape)}; {_IMAGES} is expected, of 1 or 3 channels")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _pixels(where: str, images: Tensor | np.ndarray) -> Tensor:
    """Images of one size: uint8 (N, C, H, W)."""
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and not isinstance(images, Tensor) and images.shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        got = f"{pixels.dtype} {tuple(images.shape)}"
        raise DataError(
            f"{where}: images are expected as uint8 of 1 or 3 channels, (N, C, H, W) or (N, H, W), got {got}"
        )
    return pixels.cpu().contiguous()


def _in_size(where: str, images: Tensor, image_size: int | None) -> Tensor:
    """The images with sides of `image_size`, resized as files are."""
    if image_size is None or tuple(images.shape[2:]) == (image_size, image_size):
        return images
    mode: Mode = "L" if images.shape[1] == 1 else "RGB"
    resized = [
        to_pixels(_picture(image), f"{where} sample {number}", image_size, mode) for number, image in enumerate(images)
    ]
    return torch.from_numpy(np.stack(resized))


def _kind(value: Any) -> str:
    return type(value).__name__
