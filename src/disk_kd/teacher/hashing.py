"""Hashes of a model's weights and of its structure."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn


def weights_hash(model: nn.Module) -> str:
    """SHA-256 in hexadecimal of the names, types, shapes and bytes of a model's state. Wrappers do not change it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap_model(model).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def structure_hash(model: nn.Module) -> str:
    """SHA-256 in hexadecimal of a model's modules and their settings, such as activations. Wrappers do not change it.

    It distinguishes models with equal weights that compute different outputs, unless they differ only in their code.
    """
    digest = hashlib.sha256()
    for name, module in unwrap_model(model).named_modules():
        settings = {key: _as_text(value) for key, value in sorted(vars(module).items()) if _is_setting(key, value)}
        digest.update(f"{name} {type(module).__qualname__} {settings}\n".encode())
    return digest.hexdigest()


def _is_setting(key: str, value: Any) -> bool:
    """Whether an attribute can be hashed and may change what a module computes in eval mode."""
    return not key.startswith("_") and key != "training" and (_is_simple(value) or callable(value))


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_simple, value))
    return isinstance(value, bool | int | float | str | None)


def _as_text(value: Any) -> Any:
    """A setting as text that is the same in every process: functions and objects are written by name."""
    if isinstance(value, partial):
        keywords = {key: _as_text(item) for key, item in sorted(value.keywords.items())}
        return _as_text(value.func), [_as_text(item) for item in value.args], keywords
    return value if _is_simple(value) else getattr(value, "__qualname__", type(value).__qualname__)
