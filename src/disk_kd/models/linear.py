"""Backbones without a classifier, and a linear classifier on their pooled features.

Shapes: B batch, C channels, H height, W width, D pooled features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.errors import ModelError

_POOLED = ("pooler_output", "image_embeds", "pooled")


class PooledBackbone(nn.Module):
    """A backbone whose forward pass gives pooled features, with timm's interface.

    Args:
        model: maps images (B, C, H, W) to features (B, D); or to a tuple that starts with them, or to an object or
            mapping with `pooler_output`, `image_embeds` or `pooled`.
    """

    num_classes = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pretrained_cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to pooled features (B, D).

        Raises:
            ModelError: the backbone gives something else.
        """
        return _pooled_of(self.model(x), self.model)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The same features: there is no head."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to pooled features (B, D)."""
        return self.forward_features(x)


class LinearProbe(nn.Module):
    """A backbone and a linear classifier on its pooled features: logits = W f(x) + b.

    It has timm's interface, so that every command takes it.

    Args:
        backbone: a model with `forward_features` and `forward_head`.
        num_features: D.
        num_classes: K.
    """

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.classifier = nn.Linear(num_features, num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.pretrained_cfg: dict[str, Any] = {
            **(getattr(backbone, "pretrained_cfg", None) or {}),
            "classifier": "classifier",
            "num_classes": num_classes,
        }

    @property
    def patch_embed(self) -> nn.Module | None:
        """The backbone's patch embedding, which knows the size of its images; None if it has none."""
        return getattr(self.backbone, "patch_embed", None)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the backbone's features before pooling."""
        return self.backbone.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits (B, K), or with `pre_logits` to pooled features (B, D)."""
        pooled_BD = self.backbone.forward_head(x, pre_logits=True)
        return pooled_BD if pre_logits else self.classifier(pooled_BD)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.classifier


@torch.no_grad()
def with_classifier(backbone: nn.Module, weight_KD: Tensor, bias_K: Tensor) -> nn.Module:
    """The backbone with a linear classifier on its pooled features.

    A timm model whose classifier is one linear layer on these features gets them as its own classifier, in place. Any
    other model becomes a `LinearProbe`.

    Args:
        backbone: a model without a classifier, with `forward_features` and `forward_head`.
        weight_KD: (K, D).
        bias_K: (K,).
    """
    classes, features = weight_KD.shape
    own = _own_classifier(backbone, features, classes)
    probe = LinearProbe(backbone, features, classes) if own is None else None
    classifier = own if probe is None else probe.classifier
    assert classifier is not None
    classifier.to(next(backbone.parameters()))
    classifier.weight.copy_(weight_KD)
    classifier.bias.copy_(bias_K)
    return backbone if probe is None else probe


def _own_classifier(model: Any, features: int, classes: int) -> nn.Linear | None:
    """The model's new classifier, if it is one linear layer with a bias that reads the pooled features; else None."""
    if not hasattr(model, "reset_classifier") or not hasattr(model, "get_classifier"):
        return None
    try:
        model.reset_classifier(classes)
        found = model.get_classifier()
    except (AttributeError, AssertionError, NotImplementedError, TypeError):
        return None
    fits = isinstance(found, nn.Linear) and found.bias is not None and found.in_features == features
    if fits and _reads_pooled(model, found):
        return found
    model.reset_classifier(0)
    return None


def _reads_pooled(model: Any, classifier: nn.Linear) -> bool:
    """Whether the model's logits are its classifier's output for its pooled features, in eval mode."""
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    side = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
    channels = getattr(model, "in_chans", None) or next((p.shape[1] for p in model.parameters() if p.ndim == 4), 3)
    noise = torch.rand(2, channels, *side, generator=torch.Generator().manual_seed(0)).to(like)
    model.eval()
    try:
        features = model.forward_features(noise)
        logits = classifier(model.forward_head(features, pre_logits=True))
        return logits.shape == model(noise).shape and torch.allclose(logits, model(noise), rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, AssertionError):
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode


def _pooled_of(output: Any, model: nn.Module) -> Tensor:
    """The pooled features in the output of a backbone."""
    found = output
    if not isinstance(found, Tensor):
        entries = found if isinstance(found, Mapping) else {name: getattr(found, name, None) for name in _POOLED}
        found = next((entries[name] for name in _POOLED if isinstance(entries.get(name), Tensor)), None)
        if found is None and isinstance(output, tuple | list):
            found = output[0] if output else None
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    what = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(output).__name__}"
    raise ModelError(
        f"the backbone {type(model).__name__} gives {what}, not pooled features (B, D); average over its last map or"
        " take its class token"
    )
