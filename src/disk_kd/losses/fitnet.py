"""FitNet hints: regression of the teacher's map from the student's. Legend: B batch, C channels, H, W height, width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32, check_batch


def fitnet_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean squared error between the student's regressed map and the teacher's map.

    Formula: ``mean (s - t)^2``.

    Args:
        student_map: (B, C, H, W), the output of `Regressor`; any map of the teacher's shape.
        teacher_map: of the same shape; no gradient flows into it.

    Returns:
        A scalar: the mean over all elements. In float32 at least.

    Raises:
        ConfigError: the shapes differ.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
    section 2.2.
    Departs: the paper has half the sum, and a first stage of training for the hint alone; the mean, added to
    the cross-entropy, is the form of the CRD benchmark, whose weight of 100 goes with it.

    Example:
        >>> regressor = Regressor((8, 4, 4), (16, 4, 4))
        >>> student_map, teacher_map = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = fitnet_loss(regressor(student_map), teacher_map)
    """
    if student_map.shape != teacher_map.shape:
        raise ConfigError(
            f"student and teacher maps must have one shape, got {tuple(student_map.shape)} and "
            f"{tuple(teacher_map.shape)}; bring the student's to the teacher's with a Regressor"
        )
    return F.mse_loss(at_least_float32(student_map), at_least_float32(teacher_map.detach()))


class Regressor(nn.Module):
    """Maps the student's map to the teacher's shape: pooling, 1x1 convolution, batch norm, ReLU.

    Adaptive average pooling handles all sizes: a larger map is averaged, an equal one is unchanged, and in a
    smaller one values are repeated.

    Departs: the CRD benchmark learns the change of size: a 3x3 convolution of stride 2 where the student's
    sides are twice as large, a transposed 4x4 one where they are half, else a convolution without padding
    whose kernel removes the difference (1x1 for equal sides). So for equal sides this is the
    benchmark's regressor, less the convolution's bias, which the batch norm takes away.

    Args:
        student_shape: (C, H, W) of the student's map; H and W are free to differ in use.
        teacher_shape: (C, H, W) of the teacher's map.
        relu: False for a teacher whose map may be negative, which a ReLU could not follow.
    """

    def __init__(
        self, student_shape: tuple[int, int, int], teacher_shape: tuple[int, int, int], *, relu: bool = True
    ) -> None:
        super().__init__()
        self.student_channels = student_shape[0]
        self.teacher_sides = teacher_shape[1:]
        self.conv = nn.Conv2d(student_shape[0], teacher_shape[0], 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_shape[0])
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, student_map: Tensor) -> Tensor:
        """(B, C, H, W) of the student to the teacher's (B, C, H, W).

        Raises:
            ConfigError: other channels, or in training one image of one place, which has no variance.
        """
        if student_map.dim() != 4 or student_map.shape[1] != self.student_channels:
            raise ConfigError(
                f"the student's map must be (batch, {self.student_channels}, height, width), got "
                f"{tuple(student_map.shape)}; build the Regressor for the student's shape"
            )
        pooled_BCHW = F.adaptive_avg_pool2d(at_least_float32(student_map), self.teacher_sides)
        if self.training and pooled_BCHW[0, 0].numel() == 1:
            check_batch("a Regressor to 1 x 1 maps", len(pooled_BCHW), 2)
        return self.activation(self.norm(self.conv(pooled_BCHW)))
