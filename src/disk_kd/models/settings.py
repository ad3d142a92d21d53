"""Which model a run builds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from disk_kd.errors import ConfigError

_SET_BY_RUNS = {"num_classes", "in_chans", "weights", "pretrained", "checkpoint_path"}


@dataclass(frozen=True)
class ModelSettings:
    """A model.

    Args:
        name: a model of timm or of this package (`disk-kd list models`), or my_module:make, a function or class of
            yours that makes one.
        weights: a file of weights, a run directory, or recipe:NAME for the result of that recipe.
        pretrained: let timm load, and if need be download, its pretrained weights; those of cifar_resnet10_l and
            cifar_resnet10_s, for CIFAR-100, are part of this package.
        options: further keywords of the model; mean and std, a number a channel, say that it takes (x - mean) / std of
            pixels x in [0, 1], in the place of what it says itself.
    """

    name: str
    weights: str | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"a model needs a name of `disk-kd list models`, not {self.name!r}")
        for key in self.options:
            if not isinstance(key, str) or key in _SET_BY_RUNS:
                raise ConfigError(
                    f"options of a model must be keywords of its own, not {key!r}; the data gives num_classes and"
                    " in_chans, weights and pretrained stand beside options"
                )
        if ("mean" in self.options) != ("std" in self.options):
            raise ConfigError(f"options of a model must give mean and std, or neither, not {self.options}")


@dataclass(frozen=True)
class StudentSettings(ModelSettings):
    """The model to train; weights are where it starts from."""

    name: str = "cifar_resnet10_s"
