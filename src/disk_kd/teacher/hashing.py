"""Which weights a model has, in one number."""

from __future__ import annotations

import hashlib

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
