"""The value of a buffer that the same forward pass goes on to change."""

from __future__ import annotations

import torch
from torch import Tensor


# An operator of its own, since a plain clone is not enough: compiled code may drop the clone and read the buffer again
# in the backward pass, after the change, and the gradients are silently wrong (pytorch/pytorch#197039). It does not
# recompute operators that it does not know.
@torch.library.custom_op("disk_kd::snapshot", mutates_args=())
def snapshot(buffer: Tensor) -> Tensor:
    """A copy that stays as it is, in compiled code too. No gradient flows through it."""
    return buffer.clone()


@snapshot.register_fake
def _(buffer: Tensor) -> Tensor:
    return torch.empty_like(buffer)
