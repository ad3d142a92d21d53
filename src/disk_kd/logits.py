"""Images for a model, and the logits in what it returns, for models of any library. Shapes: B batch, C classes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ModelError


def logits_of(output: Any, model: nn.Module) -> Tensor:
    """The logits (B, C) in the output of a model.

    Args:
        output: a tensor; an object or mapping with `logits`, as Hugging Face models return; or a tuple or list that
            starts with one of these, as models with auxiliary heads return.
        model: the model, for messages.

    Raises:
        ModelError: the output is something else.
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
        f"{type(unwrap_model(model)).__name__} returns a {type(output).__name__} without logits; let it return a"
        " tensor of logits, a tuple that starts with one, or an object with logits"
    )


def place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of a model, and the type of the images that it takes.

    They are those of its first floating-point parameter, or buffer. A model without tensors is on the CPU, and one
    without floating-point tensors takes float32.
    """
    tensors = list(chain(model.parameters(), model.buffers()))
    floating = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if floating is not None:
        return floating.device, floating.dtype
    return (tensors[0].device if tensors else torch.device("cpu")), torch.float32


def blank_images(model: nn.Module, count: int, size: tuple[int, ...]) -> Tensor:
    """Images of zeros for a model, on its device.

    Args:
        model: any model.
        count: B.
        size: (channels, height, width).
    """
    device, dtype = place_of(model)
    return torch.zeros(count, *size, device=device, dtype=dtype)


def class_count(model: nn.Module) -> int | None:
    """The number of classes of a plain model: from its linear classifier, else from its attribute; None if unknown.

    The attribute of timm's models keeps its value when `model.fc` is replaced, so the classifier comes first.
    """
    plain: Any = model
    head = plain.get_classifier() if hasattr(plain, "get_classifier") else None
    parts = list(head.modules()) if isinstance(head, nn.Module) else []
    sizes = [part.out_features for part in parts if isinstance(part, nn.Linear)]
    return sizes[-1] if sizes else getattr(plain, "num_classes", None)
