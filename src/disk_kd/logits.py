"""The logits of a classifier, in whatever form its forward pass gives them. Shapes: B batch, C classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ModelError


def logits_of(output: Any, model: nn.Module) -> Tensor:
    """The logits (B, C) in what a model gave.

    Args:
        output: a tensor; an object or mapping that holds the logits as `logits`, as Hugging Face's models give; or a
            tuple or list that begins with one of these, where auxiliary heads or features follow.
        model: that gave it, for messages.

    Raises:
        ModelError: it is something else.
    """
    found = output
    if isinstance(found, tuple | list) and not isinstance(getattr(found, "logits", None), Tensor):
        return logits_of(found[0] if found else None, model)
    if isinstance(found, Mapping):
        found = found.get("logits")
    elif not isinstance(found, Tensor):
        found = getattr(found, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise ModelError(
        f"{type(unwrap_model(model)).__name__} gives a {type(output).__name__} without logits; let it give a tensor of"
        " logits, a tuple that begins with one, or one named logits"
    )


def class_count(model: nn.Module) -> int | None:
    """The classes of a plain model: as its linear classifier has them, else as it says; None where neither tells.

    What timm's models say stays as it was where `model.fc` is replaced.
    """
    plain: Any = model
    head = plain.get_classifier() if hasattr(plain, "get_classifier") else None
    parts = list(head.modules()) if isinstance(head, nn.Module) else []
    sizes = [part.out_features for part in parts if isinstance(part, nn.Linear)]
    return sizes[-1] if sizes else getattr(plain, "num_classes", None)
