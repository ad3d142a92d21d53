"""Trained models: what a file of weights records about its model, and the model itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from timm.models import get_arch_name
from timm.utils import unwrap_model
from torch import nn

from disk_kd.config import RunConfig, find_hint
from disk_kd.data import Dataset
from disk_kd.errors import ModelError
from disk_kd.models import StagedNet, create_model, load_weights, set_normalisation
from disk_kd.models.about import METADATA
from disk_kd.models.foreign import is_file_kind
from disk_kd.plugins import backbone_of, find_user_code, is_on_hub, is_user_code
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
    """The model of a file of weights.

    Args:
        name, options: name and options of the model.
        weights: the file.
        num_classes, in_chans: number of classes and channels of the data.
        about: result of `read_about`: the normalisation, and a hint that changed the student's model.
        usual: `Dataset.normalisation` of the data. It is used for this package's models if another program wrote the
            file.

    Raises:
        ConfigError, ModelError, CheckpointError: the name is unknown, or the weights do not fit.
        ModelError: the normalisation of its images is unknown.
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
        raise unknown_normalisation(name, "--model.options")
    return model


def check_named(about: dict[str, Any], weights: Path, named: Collection[str]) -> None:
    """Raise an error if a file of weights refers to user code (my_module:name) that the user did not name.

    Importing a module runs its code, and the file may come from a stranger.

    Args:
        about: result of `read_about`.
        weights: the file.
        named: what the user or the run's configuration named: my_module:name, or a module. Of a module, names that it
            defines are allowed and names that it imported are not.

    Raises:
        ModelError: the file refers to other user code, or to a model of the hub that the user did not name.
    """
    hint = about.get("hint") or {}
    recorded = (about.get("model"), hint.get("name"), hint.get("teacher", {}).get("name"))
    if closed := next((name for name in map(str, recorded) if is_file_kind(name)), None):
        raise ModelError(f"{weights} is for {closed}, which has weights of its own; give {closed} in its place")
    named = set(map(backbone_of, named))
    check_no_hub(about, weights, named)
    for name in (name for name in map(backbone_of, map(str, recorded)) if is_user_code(name) and name not in named):
        module = name.partition(":")[0]
        if module not in named or getattr(find_user_code(name, "model"), "__module__", None) != module:
            raise ModelError(
                f"{weights} is for {name}. A module is not imported only because a file names it; if you trust it, give"
                f" --import {name}"
            )


def check_no_hub(about: dict[str, Any], weights: Path, named: Collection[str] = ()) -> None:
    """Raise an error if a file of weights refers to a model of the hub that the user did not name.

    timm fetches the settings of such a model from the network.

    Args:
        about, weights, named: as for `check_named`.

    Raises:
        ModelError: it does.
    """
    recorded = (about.get("model"), about.get("hint", {}).get("teacher", {}).get("name"))
    for name in map(backbone_of, map(str, recorded)):
        if is_on_hub(name) and name not in named:
            raise ModelError(
                f"{weights} is for {name}, whose settings come from the network. They are not fetched only because a"
                " file names the model; give the run directory instead, or to evaluate --model.name"
            )


def student_metadata(
    config: RunConfig, dataset: Dataset, student: nn.Module, ranges: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The metadata of a file of weights: enough to build the model, to prepare its images and to read its outputs.

    It is one entry, because the order of several entries in a safetensors file is not fixed. `ranges` is what training
    with fake quantisation learned (`disk_kd.training.ranges_of`).
    """
    return {
        METADATA: json.dumps(
            {
                "model": config.student.name,
                "options": {key: value for key, value in config.student.options.items() if key not in ("mean", "std")},
                "in_chans": dataset.in_chans,
                "image_size": dataset.image_size,
                "crop_pct": config.data.crop_pct,
                **({} if config.data.grey_bits is None else {"grey_bits": config.data.grey_bits}),
                **dict(zip(("mean", "std"), normalisation(student), strict=True)),
                "classes": dataset.class_names,
                **_grafted(config),
                **{name: json.loads(text) for name, text in (ranges or {}).items()},
            }
        )
    }


def _grafted(config: RunConfig) -> dict[str, Any]:
    """How the trained model is made of student and teacher, if a hint changes the student's model."""
    if config.hint is None or config.teacher is None or find_hint(config.hint).keeps_student():
        return {}
    (one,) = config.teacher.each  # several teachers have no features for a hint
    teacher = {"name": one.name, "options": one.options}
    return {"hint": {"name": config.hint, "options": config.hint_options, "teacher": teacher}}


def recorded_options(name: str, about: dict[str, Any]) -> dict[str, Any]:
    """The options that a file of weights records, if it belongs to the model with this name.

    Args:
        name: name of the model that loads the weights.
        about: result of `read_about`.
    """
    recorded = about.get("model", "")
    same = recorded == name or (not is_user_code(recorded + name) and get_arch_name(recorded) == get_arch_name(name))
    return about.get("options", {}) if same else {}


def with_recorded(name: str, options: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Options of a model, completed by the options, mean and std that its file of weights records.

    Args:
        name: name of the model.
        options: the user's options, which take precedence. timm's `pretrained_cfg_overlay` may hold a mean and std too.
        about: result of `read_about`.
    """
    overlay = options.get("pretrained_cfg_overlay") or {}
    stated = next((source for source in (overlay, about) if {"mean", "std"} <= source.keys()), {})
    stated = {key: stated[key] for key in ("mean", "std") if key in stated}
    return recorded_options(name, about) | stated | options


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a model's inputs, for pixel values in [0, 1].

    Raises:
        ModelError: its `pretrained_cfg` has none.
    """
    stated = stated_normalisation(unwrap_model(model))
    if stated is None:
        raise ModelError(
            f"{type(unwrap_model(model)).__name__} does not say how its images are normalised; give it mean and std"
        )
    return stated


def take_usual(model: nn.Module, usual: tuple[tuple[float, ...], tuple[float, ...]] | None) -> None:
    """Use the dataset's usual normalisation, if there is one, for a model of this package."""
    if usual is not None and isinstance(unwrap_model(model), StagedNet):
        set_normalisation(model, *usual)


def unknown_normalisation(name: str, option: str) -> ModelError:
    """The error for a trained model with unknown normalisation."""
    return ModelError(
        f"neither {name} nor its weights record how images were normalised in training; give {option}"
        " '{mean: [...], std: [...]}', for pixels in [0, 1] with one number for each channel"
    )
