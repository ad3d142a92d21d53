"""Backbones with their weights, for probes and for methods that read features only.

Shapes: B batch, C channels, H height, W width, D pooled features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from disk_kd.data import Dataset
from disk_kd.errors import ModelError, one_line
from disk_kd.models.about import read_about
from disk_kd.models.backbone import create_backbone
from disk_kd.models.settings import ModelSettings
from disk_kd.teacher import feature_shapes
from disk_kd.teacher import normalisation as stated_normalisation
from disk_kd.trained import take_usual, unknown_normalisation, with_recorded


def build_backbone(settings: ModelSettings, weights: Path | None, dataset: Dataset, option: str) -> nn.Module:
    """A trained model without its classifier, in eval mode on the CPU. The classes of its weights do not matter.

    The normalisation of its images comes from the first of these that states it: the options `mean` and `std`; the file
    of its weights; the dataset (for this package's models with weights of another program); the model.

    Args:
        settings: name, options and `pretrained`.
        weights: file of its weights; None: `pretrained`, or a user's own model.
        dataset: gives the number of channels.
        option: dotted name of the settings, for messages: "teacher" or "model".

    Raises:
        ConfigError, ModelError, CheckpointError: the name is unknown, the weights do not fit, the normalisation is not
            known, or a hint changed the model.
    """
    about = {} if weights is None else read_about(weights)
    if "hint" in about:
        raise ModelError(
            f"{weights} was changed by the hint {about['hint'].get('name')}, which gave it the teacher's classifier;"
            " give a backbone without it"
        )
    options = with_recorded(settings.name, settings.options, about)
    pretrained = settings.pretrained and (weights is None or settings.weights is not None)
    built: Any = create_backbone(
        settings.name, in_chans=dataset.in_chans, weights=weights, pretrained=pretrained, **options
    )
    if "mean" not in options and not settings.pretrained and "model" not in about:
        take_usual(built, dataset.normalisation)
    if stated_normalisation(built) is None:
        raise unknown_normalisation(settings.name, f"--{option}.options")
    image = (dataset.in_chans, dataset.image_size, dataset.image_size)
    built.pretrained_cfg = {"input_size": image} | built.pretrained_cfg
    return built.eval()


def pooled_features(backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """The number of a backbone's pooled features, found by a forward pass over a blank image.

    Args:
        backbone: a model with `forward_features` and `forward_head`.
        in_chans: C.
        image_size: H and W.

    Raises:
        ModelError: it does not accept such an image, or its output is not (B, D).
    """
    name = type(backbone).__name__
    try:
        (shape,) = feature_shapes(backbone, ["pooled"], in_chans, image_size).values()
    except ModelError:
        raise
    except Exception as error:  # a user's own model can fail in any way at all
        raise ModelError(
            f"{name} does not take an image of shape {(in_chans, image_size, image_size)} (C, H, W): {one_line(error)}"
        ) from error
    if len(shape) != 1:
        raise ModelError(
            f"the backbone {name} gives {shape} for an image, not pooled features (D,); leave out options that switch"
            " its pooling off"
        )
    return shape[0]
