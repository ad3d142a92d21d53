"""Settings of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from disk_kd.errors import ConfigError
from disk_kd.models.foreign import has_own_weights, located

_SET_BY_RUNS = {"num_classes", "in_chans", "weights", "pretrained", "checkpoint_path"}


@dataclass(frozen=True)
class ModelSettings:
    """A model.

    Args:
        name: Name of a timm model or of a model of this package (`disk-kd list models`). my_module:make calls your own
            function or class. transformers:FOLDER, onnx:FILE, torch.export:FILE and torchscript:FILE are models of
            other libraries; the last two can run code that is in the file.
        weights: File of weights, run directory, or recipe:NAME for the student of that recipe's run. null: no weights
            are loaded.
        pretrained: Load timm's pretrained weights; timm may download them. This package contains the CIFAR-100 weights
            of cifar_resnet10_l and cifar_resnet10_s.
        options: Further keyword arguments of the model. mean and std (one number for each channel) state that the model
            takes (x - mean) / std of pixels x in [0, 1]; they replace the model's own values. image_size states the
            only side in pixels that a model which is not timm's takes.
    """

    name: str
    weights: str | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"a model needs a name of `disk-kd list models`, not {self.name!r}")
        object.__setattr__(self, "name", located(self.name))
        for key in self.options:
            if not isinstance(key, str) or key in _SET_BY_RUNS:
                raise ConfigError(
                    f"options of a model must be keywords of its own, not {key!r}; the data gives num_classes and"
                    " in_chans, weights and pretrained are separate options"
                )
        if ("mean" in self.options) != ("std" in self.options):
            raise ConfigError(f"options of a model must give mean and std, or neither, not {self.options}")


def with_own_weights(model: ModelSettings) -> None:
    """Set `pretrained` of a trained model whose name states weights: an exported file, or a folder of transformers."""
    if model.weights is None and has_own_weights(model.name):
        object.__setattr__(model, "pretrained", True)


@dataclass(frozen=True)
class StudentSettings(ModelSettings):
    """The model to train. Training starts from its weights, if given."""

    name: str = "cifar_resnet10_s"
