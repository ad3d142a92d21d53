"""Knowledge review: deep student maps help shallow ones to match the teacher's.

Legend: B batch, C channels, M channels while fused, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32, check_batch

Shape = tuple[int, int, int]

_POOLED_SIZES = (4, 2, 1)
_MOST_CHANNELS = 512


def hierarchical_context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean squared error of two maps, at full size and averaged over coarser and coarser grids.

    Formula: ``sum_l w_l MSE( pool_l(student), pool_l(teacher) ) / sum_l w_l``, where l is the full size, then
    averages over 4 x 4, 2 x 2 and 1 x 1 cells, as far as those are fewer than both H and W; w is 1 at full size
    and halves from each of these to the next.

    Args:
        student_map: (B, C, H, W).
        teacher_map: (B, C, H, W); no gradient flows into it.

    Returns:
        A scalar: the mean over batch, channels and places. In float32 at least.

    Raises:
        ConfigError: shapes differ.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.3, with the
    sizes and weights of its experiments.

    Example:
        >>> student, teacher = torch.randn(4, 8, 8, 8, requires_grad=True), torch.randn(4, 8, 8, 8)
        >>> loss = hierarchical_context_loss(student, teacher)
        >>> loss.backward()
    """
    if student_map.dim() != 4 or student_map.shape != teacher_map.shape:
        raise ConfigError(
            f"student and teacher maps must have one shape (B, C, H, W), got {tuple(student_map.shape)} and "
            f"{tuple(teacher_map.shape)}; bring the student's to the teacher's"
        )
    student_BCHW, teacher_BCHW = at_least_float32(student_map), at_least_float32(teacher_map.detach())
    loss = F.mse_loss(student_BCHW, teacher_BCHW)
    weight = total = 1.0
    for size in _POOLED_SIZES:
        if size < min(student_map.shape[2:]):
            weight /= 2
            total += weight
            pooled = F.adaptive_avg_pool2d(student_BCHW, size), F.adaptive_avg_pool2d(teacher_BCHW, size)
            loss = loss + weight * F.mse_loss(*pooled)
    return loss / total


class ReviewKD(nn.Module):
    """Fuses the student's maps from deep to shallow, and compares each result with the teacher's map.

    Formula: ``sum_l HCL( expand_l(r_l), teacher_l )``. r is the map reduced to M channels (1x1 convolution and batch
    norm); at all levels but the deepest it is fused with the deeper level's r, brought to its size: ``a_1 r_l +
    a_2 r_{l+1}``, where the two maps of attention a are the sigmoid of a 1x1 convolution of both. r is then brought
    to the teacher's size, and expanded to the teacher's channels (3x3 convolution and batch norm).
    HCL: `hierarchical_context_loss`.

    The paper's experiments take maps before the last ReLU of a stage, the pooled features, as (B, C, 1, 1), for the
    deepest, and a weight of 0.6 to 8 that rises over 20 epochs.

    Args:
        student_shapes: (C, H, W) of each map, from shallow to deep.
        teacher_shapes: likewise, as many.

    Called with:
        student_maps: (B, C, H, W) each, as in `student_shapes`.
        teacher_maps: (B, C, H, W) each, as in `teacher_shapes`; no gradient flows into them.

    Returns:
        A scalar: the sum over levels of means. In float32 at least, but for the convolutions under autocast.

    Raises:
        ConfigError: there are no levels, or not as many of each; a shape is not that announced; a batch of one in
            train mode with 1 x 1 maps, of which a batch norm can make nothing.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, sections 3.2 and 3.3.
    M is the channels of the student's deepest map, at most 512; sizes change by the nearest neighbour.

    Example:
        >>> review = ReviewKD([(8, 8, 8), (16, 4, 4)], [(16, 8, 8), (32, 4, 4)])
        >>> student = [torch.randn(4, 8, 8, 8), torch.randn(4, 16, 4, 4)]
        >>> loss = review(student, [torch.randn(4, 16, 8, 8), torch.randn(4, 32, 4, 4)])
    """

    def __init__(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        super().__init__()
        if not student_shapes or len(student_shapes) != len(teacher_shapes):
            raise ConfigError(
                f"as many student as teacher maps are needed, at least 1, got {len(student_shapes)} and "
                f"{len(teacher_shapes)}; name one teacher layer for each student layer"
            )
        self.student_shapes = [tuple(shape) for shape in student_shapes]
        self.teacher_shapes = [tuple(shape) for shape in teacher_shapes]
        channels = min(self.student_shapes[-1][0], _MOST_CHANNELS)
        deepest = len(student_shapes) - 1
        self.fusions = nn.ModuleList(
            Fusion(student[0], channels, teacher[0], fuses=level < deepest)
            for level, (student, teacher) in enumerate(zip(self.student_shapes, self.teacher_shapes, strict=True))
        )

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        _check_maps("student", student_maps, self.student_shapes)
        _check_maps("teacher", teacher_maps, self.teacher_shapes)
        if self.training and (1, 1) in _sizes(self.student_shapes + self.teacher_shapes):
            check_batch("ReviewKD with 1 x 1 maps", len(student_maps[0]), 2)
        losses, deeper = [], None
        for fusion, student_map, teacher_map in reversed(
            list(zip(self.fusions, student_maps, teacher_maps, strict=True))
        ):
            expanded, deeper = fusion(student_map, deeper, teacher_map.shape[2:])
            losses.append(hierarchical_context_loss(expanded, teacher_map))
        return torch.stack(losses).sum()


class Fusion(nn.Module):
    """One level of `ReviewKD`; the paper's attention-based fusion.

    Args:
        in_channels: C of the student's map.
        channels: M.
        out_channels: C of the teacher's map.
        fuses: whether there is a deeper level.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = _convolution(in_channels, channels, 1)
        self.attention = nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid()) if fuses else None
        self.expand = _convolution(channels, out_channels, 3)

    def forward(self, map_BCHW: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The map at the teacher's size and channels, and what the next shallower level fuses with: (B, M, H, W).

        Args:
            map_BCHW: the student's map.
            deeper: what the next deeper level gave.
            size: H and W of the teacher's map.
        """
        reduced_BMHW = self.reduce(map_BCHW)
        if self.attention is not None and deeper is not None:
            deeper_BMHW = F.interpolate(deeper, reduced_BMHW.shape[2:])
            share_B2HW = self.attention(torch.cat([reduced_BMHW, deeper_BMHW], dim=1))
            reduced_BMHW = reduced_BMHW * share_B2HW[:, :1] + deeper_BMHW * share_B2HW[:, 1:]
        resized_BMHW = F.interpolate(reduced_BMHW, size)
        return self.expand(resized_BMHW), resized_BMHW


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution without bias and batch norm; the weights uniform with variance 1 / fan in."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _sizes(shapes: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {shape[1:] for shape in shapes}


def _check_maps(name: str, maps: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    got = [tuple(map_BCHW.shape[1:]) for map_BCHW in maps]
    if got != list(shapes):
        raise ConfigError(
            f"{name} maps must have the shapes (C, H, W) {list(shapes)}, got {got}; give the layers and image size "
            "that ReviewKD was built for"
        )
