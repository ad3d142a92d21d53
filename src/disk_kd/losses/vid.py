"""Variational information distillation. Legend: B batch, C channels, H and W a map's sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.losses.attention_transfer import pool_to_smaller
from disk_kd.support import at_least_float32


def vid_loss(mean: Tensor, variance: Tensor, teacher_map: Tensor) -> Tensor:
    """The negative log-likelihood of the teacher's map under a Gaussian that the student predicts.

    Formula: ``mean_{i,c,h,w} 1/2 ( (mu - t)^2 / v_c + log v_c )``: a bound, up to a constant, on the mutual
    information of both maps, with its sign turned. It may be negative.

    Args:
        mean: (B, C, H, W) mu, predicted from the student's map.
        variance: (C,) v > 0, one for each channel.
        teacher_map: of mu's shape; no gradient flows into it.

    Returns:
        A scalar: the mean over all elements. In float32 at least. The CRD benchmark's weight of 1 goes with it.

    Raises:
        ConfigError: the shapes do not go together.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer",
    CVPR 2019, the Gaussian whose variance is free in each channel.
    Departs: the mean over elements, as in the benchmark, where the paper has the sum.

    Example:
        >>> vid = VariationalInformation((8, 4, 4), (16, 4, 4))
        >>> loss = vid(torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4))
        >>> loss.backward()
    """
    if mean.dim() != 4 or mean.shape != teacher_map.shape or variance.shape != mean.shape[1:2]:
        raise ConfigError(
            f"mean and teacher's map must have one shape (batch, channels, height, width), with a variance a "
            f"channel, got {tuple(mean.shape)}, {tuple(teacher_map.shape)} and {tuple(variance.shape)}; "
            f"predict the mean for the teacher's channels"
        )
    variance_C11 = at_least_float32(variance)[:, None, None]
    error_BCHW = at_least_float32(mean) - at_least_float32(teacher_map.detach())
    return 0.5 * (error_BCHW.square() / variance_C11 + variance_C11.log()).mean()


class VariationalInformation(nn.Module):
    """`vid_loss` with the networks that predict the Gaussian. Their parameters train with the student's.

    The mean comes from the student's map by three 1x1 convolutions with ReLU between, as wide as the teacher's
    map; the variance is ``softplus(alpha_c) + eps``, learned, the same for all images and places. Where sides
    differ, the larger map is first pooled to the smaller one's size by `pool_to_smaller`.

    Args:
        student_shape: (C, H, W) of the student's map; H and W are free to differ in use.
        teacher_shape: (C, H, W) of the teacher's map, likewise.
        initial_variance: the variance at the start, above eps; the benchmark has 5.
        eps: the least variance.

    Raises:
        ConfigError: `eps` is not above 0, or `initial_variance` not above `eps`.
    """

    def __init__(
        self,
        student_shape: tuple[int, int, int],
        teacher_shape: tuple[int, int, int],
        *,
        initial_variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not initial_variance > eps > 0:
            raise ConfigError(f"need initial_variance > eps > 0, got {initial_variance} and {eps}; try 5.0 and 1e-5")
        student_channels, teacher_channels = student_shape[0], teacher_shape[0]
        self.student_channels = student_channels
        self.eps = eps
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        # The inverse of softplus, in the form that does not overflow.
        start = torch.full((teacher_channels,), initial_variance - eps)
        self.alpha = nn.Parameter(start + torch.log(-torch.expm1(-start)))

    def variance(self) -> Tensor:
        """The variance of each of the teacher's channels, (C,)."""
        return F.softplus(self.alpha) + self.eps

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """(B, C, H, W) of student and teacher to the loss; ConfigError for shapes that do not fit."""
        student_BCHW, teacher_BCHW = pool_to_smaller(student_map, teacher_map.detach())
        if student_BCHW.shape[1] != self.student_channels:
            raise ConfigError(
                f"the student's map must have {self.student_channels} channels, got {student_BCHW.shape[1]}; "
                f"build VariationalInformation for the student's shape"
            )
        return vid_loss(self.mean(student_BCHW), self.variance(), teacher_BCHW)
