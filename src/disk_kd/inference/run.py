"""Predictions for image files, batch by batch.

Shapes: B batch, C channels, S side in pixels, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disk_kd.data import Loader, Split
from disk_kd.data.decode import as_array, centre_crop, open_picture
from disk_kd.devices import inference_batch
from disk_kd.errors import DataError, ModelError, one_line
from disk_kd.inference.images import ImageFile
from disk_kd.inference.model import TrainedClassifier

_GREY = ("1", "L", "LA", "I", "F")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable first.

    Attributes:
        path: of the image.
        classes: their names.
        labels: their numbers, from 0.
        probabilities: their probabilities, at the model's temperature if it has one.
    """

    path: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    probabilities: tuple[float, ...]


def predict_files(
    classifier: TrainedClassifier,
    files: Iterable[ImageFile],
    *,
    top_k: int = 5,
    batch_size: int | None = None,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Predictions for image files, in order. At most one batch of images is in memory.

    Images are prepared as in evaluation, by the same code: decoded, turned upright, cropped and resized to bytes, then
    normalised.

    Args:
        classifier: the model.
        files: the images.
        top_k: number of classes of a prediction; of a model with fewer classes, all.
        batch_size: images in a batch; None: as in evaluation.
        skipped: gets a message for each image that cannot be read, which is then left out; None: it is an error.

    Raises:
        DataError: an image cannot be read, or is a colour image for a model of grey images.
        ModelError: the model does not give a logit for each of its classes.
    """
    size, left = batch_size or inference_batch(torch.device("cpu")), iter(files)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while batch := list(islice(left, size)):
            names, images = [], []
            for file, pixels in zip(batch, pool.map(lambda file: _attempt(classifier, file), batch), strict=True):
                if isinstance(pixels, DataError):
                    if skipped is None:
                        raise DataError(f"{pixels}; replace it, or give --skip-unreadable")
                    skipped(str(pixels))
                else:
                    names.append(file.name)
                    images.append(pixels)
            if images:
                yield from _predictions(classifier, names, torch.from_numpy(np.stack(images)), top_k)


def _attempt(classifier: TrainedClassifier, file: ImageFile) -> np.ndarray | DataError:
    """The pixels of an image, uint8 (C, S, S), or the error."""
    try:
        return _pixels(classifier, file)
    except DataError as error:
        return error


def _pixels(classifier: TrainedClassifier, file: ImageFile) -> np.ndarray:
    try:
        content = file.read()
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror or error}") from None
    if not content:
        raise DataError(f"{file.name} cannot be read as an image: it is empty")
    grey = classifier.in_chans == 1
    if grey:
        _check_grey(content, file.name)
    image = open_picture(io.BytesIO(content), file.name, "L" if grey else "RGB", classifier.grey_bits)
    return as_array(centre_crop(image, classifier.image_size, classifier.crop_pct))


def _check_grey(content: bytes, name: str) -> None:
    """Raise an error for a colour image. Files that are no images are left to the decoder."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
    except Exception:  # as in `open_picture`
        return
    if not mode.startswith(_GREY):
        raise DataError(f"{name} is a colour image (mode {mode}), the model takes grey images of 1 channel")


@torch.inference_mode()
def _predictions(
    classifier: TrainedClassifier, names: list[str], images_BCSS: Tensor, top_k: int
) -> Iterator[Prediction]:
    count = len(classifier.classes)
    images = _normalised(classifier, images_BCSS)
    try:
        logits_BK = classifier.logits(images).float()
    except Exception as error:  # of a runtime, for a graph that takes images of another size
        shape = "x".join(map(str, images_BCSS.shape[1:]))
        raise ModelError(
            f"{classifier.name} cannot classify images of {shape} values ({one_line(error)}); export the model again"
        ) from error
    if logits_BK.shape != (len(names), count):
        raise ModelError(f"{classifier.name} gives outputs {tuple(logits_BK.shape)}, and names {count} classes")
    best = (logits_BK / (classifier.temperature or 1.0)).softmax(1).topk(min(top_k, count), dim=1)
    for name, labels, values in zip(names, best.indices.tolist(), best.values.tolist(), strict=True):
        yield Prediction(name, tuple(classifier.classes[label] for label in labels), tuple(labels), tuple(values))


def _normalised(classifier: TrainedClassifier, images_BCSS: Tensor) -> Tensor:
    """The images as evaluation gives them to the model: by the loader that it uses."""
    mean, std = classifier.mean, classifier.std
    if classifier.pixels:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    count = len(images_BCSS)
    split = Split(images_BCSS, torch.zeros(count, dtype=torch.int64), classifier.classes, torch.arange(count))
    loader = Loader(split, batch_size=count, mean=mean, std=std, shuffle=False, drop_last=False)
    return next(iter(loader.batches(0))).images
