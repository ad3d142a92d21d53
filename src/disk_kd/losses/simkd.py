"""SimKD's one loss: feature alignment. Legend: B batch, C channels, H height, W width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32


def simkd_loss(projected_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean squared error of the student's projected map and the teacher's last map.

    Formula: ``mean ( p - pool(t) )^2``, where pool averages the teacher's map down to the size of the student's.

    Args:
        projected_map: (B, C, H, W), as `disk_kd.models.SimKDStudent.forward_with_projection` gives it.
        teacher_map: (B, C, H', W'), H' >= H and W' >= W, what its `forward_features` gives; no gradient flows into it.

    Returns:
        A scalar: the mean over batch, channels and places. In float32 at least.

    Raises:
        ConfigError: batch or channels differ, or the teacher's map is the smaller one.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier",
    CVPR 2022, section 3.2; the mean over all numbers, and the sizes, as in its experiments.

    Example:
        >>> projected, teacher = torch.randn(4, 8, 4, 4, requires_grad=True), torch.randn(4, 8, 8, 8)
        >>> loss = simkd_loss(projected, teacher)
        >>> loss.backward()
    """
    both = tuple(projected_map.shape), tuple(teacher_map.shape)
    if projected_map.dim() != 4 or teacher_map.dim() != 4 or both[0][:2] != both[1][:2]:
        raise ConfigError(
            f"projected and teacher maps must be (B, C, H, W) of one B and C, got {both[0]} and {both[1]}; "
            "give the last map of the teacher that the projector was built for"
        )
    height, width = projected_map.shape[2:]
    if height > teacher_map.shape[2] or width > teacher_map.shape[3]:
        raise ConfigError(
            f"the teacher's map must be at least as large as the projected one, got {both[1]} and {both[0]}; "
            "give both models images of one size"
        )
    pooled_BCHW = F.adaptive_avg_pool2d(at_least_float32(teacher_map.detach()), (height, width))
    return F.mse_loss(at_least_float32(projected_map), pooled_BCHW)
