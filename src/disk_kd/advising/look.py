"""A look at a run before it is trained: its teacher, its models, its time, its memory and its disk."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from disk_kd.advising.timing import OneBatchStored, Parts, Precision, teacher_view_s, training_s, validation_s
from disk_kd.build import train_loader
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit
from disk_kd.devices import inference_batch
from disk_kd.errors import ConfigError, DataError
from disk_kd.measure import TeacherLogits
from disk_kd.metrics import metrics_of, predict, temperature_scaled_nll
from disk_kd.models import multiply_adds
from disk_kd.storing import view_bytes
from disk_kd.support import UNLABELLED

_MOST_IMAGES = 5_000
"""Validation images that the teacher sees."""
_ROUNDS = 3
_OF_MEMORY = 0.8
"""The share of the free memory that a batch may take."""
_STATES = 4
"""Copies of the trained weights: weights, gradients and two states of an optimiser."""


@dataclass(frozen=True)
class TeacherQuality:
    """How good and how well calibrated the teacher is.

    Attributes:
        split: where it was measured.
        images: number of images.
        top1: in percent.
        nll: in nats.
        ece: expected calibration error, a fraction.
        temperature: with the least NLL. Above 1 the teacher is too confident.
        ece_scaled: ECE at that temperature.
    """

    split: str
    images: int
    top1: float
    nll: float
    ece: float
    temperature: float
    ece_scaled: float


@dataclass(frozen=True)
class Size:
    """Size of a model.

    Attributes:
        parameters: number of parameters.
        multiply_adds: of one image.
    """

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Seconds:
    """Measured seconds of training in an epoch, without validation.

    Attributes:
        labels: cross-entropy on the labels alone.
        online: with the teacher in each step.
        stored: with the teacher's outputs read from a store.
        view: the teacher alone, over all training images, for one view of a store.
        validation: one validation of the student.
        other_precision: as `stored`, with bf16 in the place of fp32 and the reverse.
    """

    labels: float
    online: float
    stored: float
    view: float
    validation: float
    other_precision: float


@dataclass(frozen=True)
class Room:
    """What fits.

    Attributes:
        view_bytes: disk of one view of the teacher's outputs.
        disk_bytes: free disk of the folder of runs.
        memory_bytes: free memory of the device.
        activation_bytes_per_image: what a step keeps for the backward pass.
        model_bytes: student with gradients and optimiser, and teacher.
        most_images: the largest batch that fits, a power of two.
    """

    view_bytes: int
    disk_bytes: int
    memory_bytes: int
    activation_bytes_per_image: int
    model_bytes: int
    most_images: int


def check_teaches(config: RunConfig) -> None:
    """Refuse a run without a teacher.

    Raises:
        ConfigError: it has none.
    """
    if config.teacher is None:
        raise ConfigError(f"method {config.method} has no teacher to advise on; give --method kd")
    if not config.task_class.teacher_classes:
        raise ConfigError(f"method {config.method} does not read the teacher's classes to advise on; give --method kd")


def teacher_quality(parts: Parts) -> TeacherQuality:
    """The teacher on the validation split; on training images with a label, where there is none.

    Raises:
        DataError: no image has a label.
    """
    assert parts.task.teacher is not None
    name = "validation" if parts.dataset.validation else "training"
    split = parts.dataset.validation or parts.dataset.train
    if not (labelled := (split.targets != UNLABELLED).nonzero().flatten()).numel():
        raise DataError(
            "advise measures the teacher on labelled images, and there are none; give --data.root, a folder of them"
        )
    split = _some(split.subset(labelled) if len(labelled) < len(split) else split)
    loader = train_loader(
        parts.config,
        parts.task,
        split,
        batch_size=inference_batch(parts.device),
        augment=None,
        mix=None,
        shuffle=False,
        drop_last=False,
    )
    logits, targets = predict(TeacherLogits(parts.task.teacher), loader, device=parts.device)
    found = metrics_of(logits, targets)
    temperature, _, ece = temperature_scaled_nll(logits, targets)
    return TeacherQuality(name, len(split), found.top1, found.nll, found.ece, temperature, ece)


def _some(split: AnySplit) -> AnySplit:
    """At most `_MOST_IMAGES` samples, evenly spaced."""
    if len(split) <= _MOST_IMAGES:
        return split
    return split.subset(torch.linspace(0, len(split) - 1, _MOST_IMAGES).long())


def sizes(parts: Parts) -> dict[str, Size]:
    """Student and teacher; several teachers together."""
    data, task = parts.dataset, parts.task
    side = (data.image_size, data.image_size)
    found = {"student": Size(_parameters(task.student), multiply_adds(task.student, (data.in_chans, *side)))}
    if task.teacher is not None:
        adds = [multiply_adds(one.model, (data.in_chans, *(one.image_size or side))) for one in task.teacher.members]
        found["teacher"] = Size(sum(_parameters(one.model) for one in task.teacher.members), sum(adds))
    return found


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def seconds(parts: Parts) -> Seconds:
    """Time everything on a few steps, in turns, and take the medians: other programs may slow some of them.

    The student's weights change.
    """
    alone: dict[str, Any] = {"method": "ce", "method_options": {}, "hint": None, "hint_options": {}, "teacher": None}
    labels = Parts.of(replace(parts.config, **alone), parts.dataset)
    parts.begin()
    stored = OneBatchStored(parts)
    other: Precision = "fp32" if parts.config.train.precision == "bf16" else "bf16"
    cases: dict[str, Callable[[], float]] = {
        "labels": lambda: training_s(labels),
        "online": lambda: training_s(parts),
        "stored": lambda: training_s(parts, stored),
        "view": lambda: teacher_view_s(parts),
        "validation": lambda: validation_s(parts),
        "other_precision": lambda: training_s(parts, stored, other),
    }
    rounds = [{name: case() for name, case in cases.items()} for _ in range(_ROUNDS)]
    return Seconds(**{name: statistics.median(one[name] for one in rounds) for name in cases})


def room(parts: Parts) -> Room:
    """Disk and memory."""
    folder = next(path for path in (parts.config.runs, *parts.config.runs.absolute().parents) if path.exists())
    free = _free_memory(parts.device)
    each = _activation_bytes(parts)
    trained = sum(one.numel() * one.element_size() for one in parts.task.parameters() if one.requires_grad)
    held = sum(one.numel() * one.element_size() for one in parts.task.parameters() if not one.requires_grad)
    models = _STATES * trained + held
    images = max(1, int((_OF_MEMORY * free - models) / max(each, 1)))
    return Room(
        view_bytes=view_bytes(parts.config, parts.task, parts.train),
        disk_bytes=shutil.disk_usage(folder).free,
        memory_bytes=free,
        activation_bytes_per_image=each,
        model_bytes=models,
        most_images=2 ** (images.bit_length() - 1),
    )


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _activation_bytes(parts: Parts) -> int:
    """Bytes for each image that autograd keeps for the backward pass: counted, not estimated."""
    batch = next(parts.loader().batches(0))
    own = {parameter.untyped_storage().data_ptr() for parameter in parts.task.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parts.task.train()
    outputs = OneBatchStored(parts).read(batch.ids, batch.view, parts.device)
    if parts.task.needs_ids:
        outputs = {**outputs, "ids": batch.ids}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = parts.task(batch.images, batch.targets, outputs)
    del result
    return sum(kept.values()) // len(batch.targets)
