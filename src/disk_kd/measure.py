"""Measure a model on a split: a run's student, a file of weights, or a model of this package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disk_kd import ranks
from disk_kd.build import STUDENT, load_data
from disk_kd.data import AnySplit, Batch, Loader, check_labels
from disk_kd.data.settings import DataSettings
from disk_kd.devices import inference_batch, pick_device, place
from disk_kd.errors import CheckpointError, DataError, ModelError
from disk_kd.metrics import Metrics, evaluate, predict, temperature_scaled_nll
from disk_kd.models import shipped_weights
from disk_kd.models.about import read_about
from disk_kd.models.settings import ModelSettings
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
    split: AnySplit | None = getattr(dataset, config.split)
    if split is None:
        raise DataError(f"{config.data.name} has no {config.split} split")
    sizes = dataset.num_classes, dataset.in_chans
    model = trained_model(name, options, path, *sizes, about, dataset.normalisation)
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    return evaluate_split(model.to(device), place(split, device), device).as_dict()


def evaluate_split(model: nn.Module, split: AnySplit, device: torch.device, channels_last: bool = False) -> Metrics:
    """Metrics of a model on a whole split. The model is on the device."""
    batches = _all_of(split, model, device, channels_last)
    return evaluate(model, batches, device=device, num_classes=len(split.class_names), across_ranks=True)


def temperature_scaled(
    model: nn.Module, validation: AnySplit, test: AnySplit, device: torch.device, channels_last: bool = False
) -> dict[str, dict[str, float]]:
    """The temperature with the lowest NLL on the validation split, and NLL and ECE of both splits at it."""
    batches = _all_of(validation, model, device, channels_last)
    temperature, nll, ece = temperature_scaled_nll(*predict(model, batches, device=device, across_ranks=True))
    batches = _all_of(test, model, device, channels_last)
    scaled = evaluate(
        model, batches, device=device, num_classes=len(test.class_names), temperature=temperature, across_ranks=True
    )
    found = {"validation": (nll, ece), "test": (scaled.nll, scaled.ece)}
    return {
        name: {"temperature": temperature, "nll_scaled": nll, "ece_scaled": ece} for name, (nll, ece) in found.items()
    }


def _all_of(split: AnySplit, model: nn.Module, device: torch.device, channels_last: bool) -> Iterator[Batch]:
    """All samples (or this rank's share), without augmentation, normalised for the model."""
    mean, std = normalisation(model)
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
