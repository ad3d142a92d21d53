"""The student to export, and what is known about it.

Shapes: B batch, C channels of the image, H and W its height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.build import STUDENT
from disk_kd.errors import CheckpointError, ModelError
from disk_kd.models.about import read_about
from disk_kd.models.foreign import short_name
from disk_kd.plugins import import_modules
from disk_kd.recipe import imports_of, is_run_config, load_recipe, named_in
from disk_kd.summary import read_summary
from disk_kd.trained import check_named, normalisation, trained_model


class Normalised(nn.Module):
    """A model for pixels in [0, 1]: logits(x) = model((x - mean) / std).

    Args:
        model: maps normalised images (B, C, H, W) to logits (B, K).
        mean, std: C values each, one for each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.model((x - self.mean) / self.std)


@dataclass(frozen=True)
class Student:
    """A trained model in eval mode on the CPU, and what is known about it.

    Args:
        weights: the file that it was read from.
        model: maps normalised images (B, C, H, W) to logits (B, K).
        about: metadata of the file (`disk_kd.trained.student_metadata`), with "mean" and "std" for each channel, and
            "temperature" if the run fitted one.
        summary: summary of its run; empty if there is none beside the file.
        hint: name of the hint in the run's config; None if there is none.
    """

    weights: Path
    model: nn.Module
    about: dict[str, Any]
    summary: dict[str, Any]
    hint: str | None

    @property
    def settings(self) -> dict[str, Any]:
        """timm's configuration of the model."""
        model: Any = self.model
        return model.pretrained_cfg

    @property
    def architecture(self) -> str:
        """timm's name of the student, without tag and source. For a user's own model, the name after its module; for
        one of another library, the name of its folder.
        """
        return self.settings.get("architecture") or short_name(self.about["model"]).rpartition(":")[2]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.about["in_chans"], self.about["image_size"], self.about["image_size"]

    def timm_options(self) -> dict[str, Any]:
        """Keyword arguments with which `timm.create_model` builds the model."""
        return {"num_classes": len(self.about["classes"]), "in_chans": self.about["in_chans"], **self.about["options"]}

    def normalised(self, model: nn.Module | None = None) -> Normalised:
        """The model for pixels in [0, 1]; with `model`, that one instead of the float model."""
        return Normalised(self.model if model is None else model, self.about["mean"], self.about["std"]).eval()


def read_student(run: Path, imports: Iterable[str] = ()) -> Student:
    """The trained model of a run directory or of a file of weights.

    Args:
        run: either. User code that the configuration of a run directory names is imported; user code that a file of
            weights names is not.
        imports: modules, or my_module:name, to import too.

    Raises:
        CheckpointError: there are no weights, or they do not fit.
        ModelError: the file does not record its model, or the model comes from user code that was not named.
    """
    weights = run / STUDENT if run.is_dir() else run
    if not weights.is_file():
        raise CheckpointError(f"no weights at {weights}; give a finished run directory, or a file that a run wrote")
    about = read_about(weights)
    if not about.keys() >= {"model", "options", "in_chans", "image_size", "classes"}:
        raise ModelError(f"{weights} does not say its model and classes; give a run directory, or a file that it wrote")
    config = weights.parent / "config.yaml"
    recipe = load_recipe(config) if is_run_config(config) else {}
    allowed = recipe if run.is_dir() else {}
    import_modules([*imports, *imports_of(allowed)])
    check_named(about, weights, {*imports, *named_in(allowed)})
    channels = about["in_chans"]
    model = trained_model(about["model"], about["options"], weights, len(about["classes"]), channels, about).eval()
    mean, std = (_per_channel(values, channels) for values in normalisation(model))
    summary = read_summary(weights.parent) or {}
    temperature = summary.get("test", summary.get("validation", {})).get("temperature")
    calibrated = {} if temperature is None else {"temperature": temperature}
    return Student(
        weights,
        model,
        calibrated | about | {"mean": mean, "std": std},
        summary,
        recipe.get("hint", {}).get("name"),
    )


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """One value for each channel. Grey images use the mean over the colours, as in training."""
    return [sum(values) / len(values)] if channels == 1 else list(values)
