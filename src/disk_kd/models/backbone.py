"""Backbones: models without a classifier, whose pooled features are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.utils import unwrap_model
from torch import nn

from disk_kd.errors import ModelError
from disk_kd.models.factory import create_model
from disk_kd.models.linear import LinearProbe, PooledBackbone
from disk_kd.models.weights import classifier_prefixes, load_weights
from disk_kd.plugins import backbone_of


def create_backbone(
    name: str, *, in_chans: int, weights: Path | None = None, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Create a model without its classifier, with `forward_features` and `forward_head`.

    A user's own model is called with num_classes=0 if it takes `num_classes`. A model without `forward_head` must give
    pooled features (B, D) as its output.

    Args:
        name, in_chans, pretrained, options: as for `create_model`.
        weights: local file to load. A classifier in it is left out.

    Raises:
        ConfigError, ModelError, CheckpointError: as for `create_model`.
    """
    if backbone_of(name) != name:
        raise ModelError(f"{name} has a linear classifier already; give the backbone, {backbone_of(name)}")
    model: Any = create_model(name, num_classes=0, in_chans=in_chans, pretrained=pretrained, **options)
    if weights is not None:
        load_weights(model, weights, leave_out=classifier_prefixes(unwrap_model(model)))
    timm_like = hasattr(model, "forward_features") and hasattr(model, "forward_head")
    return model if timm_like else PooledBackbone(model)


def create_probed(name: str, *, num_classes: int, in_chans: int, features: int, **options: Any) -> nn.Module:
    """Create linear:BACKBONE, a backbone with a linear classifier (`LinearProbe`), without its weights.

    Args:
        name: linear:BACKBONE.
        num_classes, in_chans: number of classes and channels.
        features: number of the backbone's pooled features.
        options: of the backbone.

    Raises:
        ConfigError, ModelError: as for `create_model`.
    """
    return LinearProbe(create_backbone(backbone_of(name), in_chans=in_chans, **options), features, num_classes)
