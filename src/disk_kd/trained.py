"""Models of files of weights: what a file says of its model, and the model that it is for."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from timm.models import get_arch_name
from timm.utils import unwrap_model
from torch import nn

from disk_kd.config import RunConfig, find_hint
from disk_kd.data import Dataset
from disk_kd.errors import ModelError
from disk_kd.models import ResNet, StagedNet, create_model, load_weights, set_normalisation
from disk_kd.models.about import METADATA
from disk_kd.plugins import find_own, is_own
from disk_kd.teacher import normalisation as stated_normalisation


def trained_model(
    name: str,
    options: dict[str, Any],
    weights: Path,
    num_classes: int,
    in_chans: int,
    about: dict[str, Any],
    usual: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> nn.Module:
    """The model that a file of weights is for.

    Args:
        name, options: of the student.
        weights: the file.
        num_classes, in_chans: of the data.
        about: what `read_about` says of it: of the normalisation, and of a hint that made another model of the student.
        usual: `Dataset.normalisation` of the data, for this package's models where another program wrote the file.

    Raises:
        ConfigError, ModelError, CheckpointError: the name is unknown, or the weights do not fit.
        ModelError: nothing tells how its images are normalised.
    """
    sizes: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    options, hint = with_recorded(name, options, about), about.get("hint")
    if hint is None:
        model = create_model(name, weights=weights, **sizes, **options)
    else:
        teacher = create_model(hint["teacher"]["name"], **sizes, **hint["teacher"]["options"])
        model = find_hint(hint["name"]).prepare(create_model(name, **sizes, **options), teacher, hint["options"])
        load_weights(model, weights)
    if "mean" not in options and "model" not in about:
        take_usual(model, usual)
    if stated_normalisation(model) is None:
        raise untold(name, "--model.options")
    return model


def check_named(about: dict[str, Any], weights: Path, named: Collection[str]) -> None:
    """Refuse a file of weights that says it is of a model or hint by my_module:name which the user did not name.

    Importing a module runs it, and a file may come from anywhere.

    Args:
        about: what `read_about` says of the file.
        weights: the file.
        named: what the user, or the run's own configuration, named: my_module:name, or a module, of which what it
            defines itself is allowed and what it imported is not.

    Raises:
        ModelError: the file names another.
    """
    hint = about.get("hint") or {}
    said = (about.get("model"), hint.get("name"), hint.get("teacher", {}).get("name"))
    for name in (name for name in map(str, said) if is_own(name) and name not in named):
        module = name.partition(":")[0]
        if module not in named or getattr(find_own(name, "model"), "__module__", None) != module:
            raise ModelError(
                f"{weights} says that it is of {name}, and a module is not imported because a file names it; if you"
                f" know it, give --import {name}"
            )


def student_metadata(config: RunConfig, dataset: Dataset, student: nn.Module) -> dict[str, str]:
    """What a file of weights says of itself: enough to build the model, to feed it and to read its outputs.

    One entry, because the order of several in a safetensors file differs from write to write.
    """
    return {
        METADATA: json.dumps(
            {
                "model": config.student.name,
                "options": {key: value for key, value in config.student.options.items() if key not in ("mean", "std")},
                "in_chans": dataset.in_chans,
                "image_size": dataset.image_size,
                "crop_pct": config.data.crop_pct,
                **dict(zip(("mean", "std"), normalisation(student), strict=True)),
                "classes": dataset.class_names,
                **_grafted(config),
            }
        )
    }


def _grafted(config: RunConfig) -> dict[str, Any]:
    """How the trained model is made of student and teacher, where a hint makes another model of the student."""
    if config.hint is None or config.teacher is None or find_hint(config.hint).keeps_student():
        return {}
    teacher = {"name": config.teacher.name, "options": config.teacher.options}
    return {"hint": {"name": config.hint, "options": config.hint_options, "teacher": teacher}}


def recorded_options(name: str, about: dict[str, Any]) -> dict[str, Any]:
    """The options that a file of weights records, if it is of the model of this name.

    Args:
        name: of the model that the weights are loaded into.
        about: what `read_about` says of the file.
    """
    said = about.get("model", "")
    same = said == name or (not is_own(said + name) and get_arch_name(said) == get_arch_name(name))
    return about.get("options", {}) if same else {}


def with_recorded(name: str, options: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Options of a model, with those, and the mean and std, that the file of its weights says, unless they have others.

    Args:
        name: of the model.
        options: as a user gives them; timm's `pretrained_cfg_overlay` may hold a mean and std too.
        about: what `read_about` says of the file.
    """
    overlay = options.get("pretrained_cfg_overlay") or {}
    told = next((source for source in (overlay, about) if {"mean", "std"} <= source.keys()), {})
    told = {key: told[key] for key in ("mean", "std") if key in told}
    return recorded_options(name, about) | told | options


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a model's inputs, for values in [0, 1].

    Raises:
        ModelError: its `pretrained_cfg` does not say.
    """
    stated = stated_normalisation(unwrap_model(model))
    if stated is None:
        raise ModelError(
            f"{type(unwrap_model(model)).__name__} does not say how its images are normalised; give it mean and std"
        )
    return stated


def take_usual(model: nn.Module, usual: tuple[tuple[float, ...], tuple[float, ...]] | None) -> None:
    """Normalise the images of one of this package's models as is usual for the data, where that is known."""
    if usual is not None and isinstance(unwrap_model(model), ResNet | StagedNet):
        set_normalisation(model, *usual)


def untold(name: str, option: str) -> ModelError:
    """The error for a trained model whose images may be normalised in any way."""
    return ModelError(
        f"neither {name} nor its weights say how its images were normalised in training; give {option}"
        " '{mean: [...], std: [...]}', for pixels in [0, 1] and one number a channel"
    )
