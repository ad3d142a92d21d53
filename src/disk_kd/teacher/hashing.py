"""Which weights a model has, and what it computes with them, in one number each."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn


def weights_hash(model: nn.Module) -> str:
    """SHA-256 in hexadecimal of the names, types, shapes and bytes of a model's state; wrappers count not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap_model(model).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def structure_hash(model: nn.Module) -> str:
    """SHA-256 in hexadecimal of a model's modules and their settings, such as activations; wrappers count not.

    Models of the same weights that compute something else differ in it, unless the difference stands in code alone.
    """
    digest = hashlib.sha256()
    for name, module in unwrap_model(model).named_modules():
        settings = {key: _told(value) for key, value in sorted(vars(module).items()) if _is_setting(key, value)}
        digest.update(f"{name} {type(module).__qualname__} {settings}\n".encode())
    return digest.hexdigest()


def _is_setting(key: str, value: Any) -> bool:
    """Whether an attribute may change what a module computes in eval mode, and can be told."""
    return not key.startswith("_") and key != "training" and (_is_simple(value) or callable(value))


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_simple, value))
    return isinstance(value, bool | int | float | str | None)


def _told(value: Any) -> Any:
    """A setting as text that is the same in every process: functions and objects by their names."""
    if isinstance(value, partial):
        keywords = {key: _told(item) for key, item in sorted(value.keywords.items())}
        return _told(value.func), [_told(item) for item in value.args], keywords
    return value if _is_simple(value) else getattr(value, "__qualname__", type(value).__qualname__)
