"""Attention transfer. Legend: B batch, C channels, H and W a map's sides, P = H W its places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32


def attention_transfer_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """The distance between the student's and the teacher's attention maps, summed over layers.

    Formula: ``sum_layers mean_{i, p} ( q_s - q_t )^2``, where q is an image's attention map over the layer's
    places p, ``mean_c a_cp^2``, divided by its L2 norm over the places.

    Args:
        student_maps: one (B, C, H, W) for each layer.
        teacher_maps: as many, with the same B. C, H and W may differ; the larger map is pooled to the smaller
            one's size by `pool_to_smaller`. No gradient flows into them.

    Returns:
        A scalar: the sum over layers of the mean over images and places. In float32 at least. As the paper
        divides its weight of 1000 by batch and places, that weight goes with this mean, undivided; so it
        stands in the CRD benchmark too.

    Raises:
        ConfigError: there are no maps, their numbers differ, or their shapes do not fit.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2, with the
    sum of squares over channels as attention; the norm cancels the difference of sum and mean.
    Departs: the square of the distance, undivided; equation 2 has half the distance itself.

    Example:
        >>> student_maps = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> teacher_maps = [torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)]
        >>> loss = attention_transfer_loss(student_maps, teacher_maps)
    """
    if not len(student_maps) == len(teacher_maps) > 0:
        raise ConfigError(
            f"student and teacher must give as many maps, at least one, got {len(student_maps)} and "
            f"{len(teacher_maps)}; pair the layers"
        )
    losses = []
    for student_map, teacher_map in zip(student_maps, teacher_maps, strict=True):
        student_BCHW, teacher_BCHW = pool_to_smaller(student_map, teacher_map.detach())
        losses.append(F.mse_loss(_attention(student_BCHW), _attention(teacher_BCHW)))
    return torch.stack(losses).sum()


def pool_to_smaller(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Pools the larger of two maps to the smaller one's size (adaptive average pooling), in float32 at least.

    Args:
        student_map: (B, C, H, W).
        teacher_map: (B, C, H, W); C, H and W may differ from the student's.

    Returns:
        Both maps; H is the smaller H of both, W the smaller W.

    Raises:
        ConfigError: a map does not have four dimensions, or the batches differ.
    """
    if student_map.dim() != 4 or teacher_map.dim() != 4 or len(student_map) != len(teacher_map):
        raise ConfigError(
            f"student and teacher maps must be (batch, channels, height, width) of one batch, got "
            f"{tuple(student_map.shape)} and {tuple(teacher_map.shape)}; give maps before pooling"
        )
    height = min(student_map.shape[2], teacher_map.shape[2])
    width = min(student_map.shape[3], teacher_map.shape[3])
    return _pool(student_map, height, width), _pool(teacher_map, height, width)


def _pool(map_BCHW: Tensor, height: int, width: int) -> Tensor:
    map_BCHW = at_least_float32(map_BCHW)
    return map_BCHW if map_BCHW.shape[2:] == (height, width) else F.adaptive_avg_pool2d(map_BCHW, (height, width))


def _attention(map_BCHW: Tensor) -> Tensor:
    """The mean square over channels, divided by its L2 norm over the places, (B, P). A map of zeros gives zeros."""
    return F.normalize(map_BCHW.square().mean(1).flatten(1), dim=1)
