"""Measure a model on a split: a run's student, a file of weights, a model of this package, or teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd import ranks
from disk_kd.build import STUDENT, build_teacher, check_weights, load_data
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Batch, Dataset, Loader, check_labels
from disk_kd.data.settings import DataSettings
from disk_kd.devices import inference_batch, pick_device, place
from disk_kd.errors import CheckpointError, DataError, ModelError
from disk_kd.metrics import Metrics, evaluate, metrics_of, predict, temperature_scaled_nll
from disk_kd.models import shipped_weights
from disk_kd.models.about import read_about
from disk_kd.models.settings import ModelSettings
from disk_kd.teacher import AnyTeacher
from disk_kd.trained import check_named, normalisation, trained_model


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings of `disk-kd evaluate`."""

    weights: Path
    data: DataSettings
    model: ModelSettings | None = None
    split: str = "test"
    device: str = "auto"
    named: frozenset[str] = frozenset()
    """What a file of weights may say it is of, among what is a user's own (`disk_kd.trained.check_named`)."""

    @property
    def title(self) -> str:
        """What is measured, in words."""
        return f"{self.weights} on {self.data.name} ({self.split})"


@dataclass(frozen=True)
class TeacherEvaluation:
    """The settings of `disk-kd evaluate` for teachers: `config` names them and the data."""

    config: RunConfig
    split: str = "test"
    device: str = "auto"

    @property
    def title(self) -> str:
        """What is measured, in words."""
        return f"Teachers on {self.config.data.name} ({self.split})"


class _Pixels(nn.Module):
    """In the place of a student: batches hold pixels in [0, 1]."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.num_classes = dataset.num_classes
        self.pretrained_cfg = {"mean": (0.0,) * dataset.in_chans, "std": (1.0,) * dataset.in_chans}


class TeacherLogits(nn.Module):
    """A teacher as a model that gives logits alone."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher(images)["logits"]


def evaluate_teachers(evaluation: TeacherEvaluation) -> dict[str, dict[str, Any]]:
    """Metrics of each teacher of a configuration on a split, by name; then of the ensemble, if there are several.

    The teachers see the images of the data without augmentation, with their own resolution, normalisation and classes.

    Raises:
        DiskKDError: the weights or the data are missing, or do not fit each other.
    """
    names, measured, targets_N, teacher = teacher_logits(evaluation)
    found = dict(zip(names, measured, strict=True))
    if len(measured) > 1:
        found["ensemble"] = teacher.joined([{"logits": logits_NC} for logits_NC in measured])["logits"]
    return {name: metrics_of(logits_NC, targets_N).as_dict() for name, logits_NC in found.items()}


def teacher_logits(evaluation: TeacherEvaluation) -> tuple[list[str], list[Tensor], Tensor, AnyTeacher]:
    """What the teachers of a configuration say of a split.

    Returns:
        Names of the teachers; logits (N, C) of each and targets (N,), on the host; and the teacher that they make.

    Raises:
        DiskKDError: the weights or the data are missing, or do not fit each other.
    """
    config = evaluation.config
    check_weights(config)
    device = pick_device(evaluation.device)
    dataset = load_data(config.data)
    split = _split(dataset, evaluation.split)
    teacher = build_teacher(config, dataset, _Pixels(dataset), device, torch.contiguous_format)
    placed, given = place(split, device), (teacher.input_mean, teacher.input_std)
    measured: list[tuple[Tensor, Tensor]] = []
    for member in teacher.members:
        batches = _all_of(placed, given, device)
        measured.append(predict(TeacherLogits(member), batches, device=device, across_ranks=True))
    return _names(config), [logits_NC for logits_NC, _ in measured], measured[0][1], teacher


def _names(config: RunConfig) -> list[str]:
    """A name of its own for each teacher: its model's, with a number if several have the same model."""
    names = [] if config.teacher is None else [one.name for one in config.teacher.each]
    repeated = {name for name in names if names.count(name) > 1}
    return [f"{name} ({number + 1})" if name in repeated else name for number, name in enumerate(names)]


def _split(dataset: Dataset, name: str) -> AnySplit:
    split: AnySplit | None = getattr(dataset, name)
    if split is None:
        others = [other for other in ("test", "validation") if getattr(dataset, other) is not None]
        remedy = f"give --split {others[0]}" if others else "give --data.root, a folder of labelled images"
        raise DataError(f"{dataset.name} has no {name} split; {remedy}")
    return split


def evaluate_weights(config: EvaluationConfig) -> dict[str, Any]:
    """Metrics of a run's student, of a file of weights, or of a model of this package, on a split.

    Raises:
        CheckpointError: there are no such weights, or they do not fit the model.
        ModelError: neither the weights nor the config state the model.
        DataError: the data is missing, has no such split, or has other classes than the weights.
    """
    path = config.weights / STUDENT if config.weights.is_dir() else config.weights
    if not path.exists():
        path = shipped_weights(str(path)) or path
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a finished run directory, a file, or cifar_resnet10_{{l,s}}")
    about = read_about(path)
    name = config.model.name if config.model else about.get("model")
    if name is None:
        raise ModelError(f"{path} does not say which model it is for; give --model.name")
    check_named(about | {"model": name}, path, config.named)
    options = config.model.options if config.model else about.get("options", {})
    device = pick_device(config.device)
    data = config.data
    if data.image_size is None:  # the size that the student learned from
        data = replace(data, image_size=about.get("image_size"))
    dataset = load_data(data)
    split = _split(dataset, config.split)
    sizes = dataset.num_classes, dataset.in_chans
    model = trained_model(name, options, path, *sizes, about, dataset.normalisation)
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    return evaluate_split(model.to(device), place(split, device), device).as_dict()


def evaluate_split(model: nn.Module, split: AnySplit, device: torch.device, channels_last: bool = False) -> Metrics:
    """Metrics of a model on a whole split. The model is on the device."""
    batches = _all_of(split, normalisation(model), device, channels_last)
    return evaluate(model, batches, device=device, num_classes=len(split.class_names), across_ranks=True)


def temperature_scaled(
    model: nn.Module, validation: AnySplit, test: AnySplit, device: torch.device, channels_last: bool = False
) -> dict[str, dict[str, float]]:
    """The temperature with the lowest NLL on the validation split, and NLL and ECE of both splits at it."""
    batches = _all_of(validation, normalisation(model), device, channels_last)
    temperature, nll, ece = temperature_scaled_nll(*predict(model, batches, device=device, across_ranks=True))
    batches = _all_of(test, normalisation(model), device, channels_last)
    scaled = evaluate(
        model, batches, device=device, num_classes=len(test.class_names), temperature=temperature, across_ranks=True
    )
    found = {"validation": (nll, ece), "test": (scaled.nll, scaled.ece)}
    return {
        name: {"temperature": temperature, "nll_scaled": nll, "ece_scaled": ece} for name, (nll, ece) in found.items()
    }


def _all_of(
    split: AnySplit,
    mean_std: tuple[Sequence[float], Sequence[float]],
    device: torch.device,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """All samples (or this rank's share), without augmentation, normalised by mean and standard deviation."""
    mean, std = mean_std
    loader = Loader(
        split,
        batch_size=inference_batch(device),
        mean=mean,
        std=std,
        shuffle=False,
        drop_last=False,
        channels_last=channels_last,
        device=device,
        rank=ranks.rank(),
        ranks=ranks.size(),
    )
    return (batch for batch in loader.batches(0) if len(batch.targets))
