"""Relational knowledge distillation. Legend: B batch, F features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32, check_batch

# Rows nearer than this, in units of the mean distance, count as one: between them there is no direction.
_COINCIDE = 1e-6


def rkd_loss(
    student_features: Tensor, teacher_features: Tensor, *, distance_weight: float, angle_weight: float
) -> Tensor:
    """The difference between student and teacher in the distances and angles between the images of a batch.

    Formula: ``w_d mean_{i,j} h( d_ij^s - d_ij^t ) + w_a mean_{i,j,k} h( a_ijk^s - a_ijk^t )``, where d_ij is
    the Euclidean distance of rows i and j divided by the mean of those that are not zero, a_ijk the cosine of
    the angle at j between i and k, and h Huber's: x^2 / 2 up to 1, then |x| - 1/2.

    Args:
        student_features: (B, F), pooled; B at least 3.
        teacher_features: (B, F) of the same batch, F may differ; no gradient flows into them.
        distance_weight: w_d; 25 in the paper and in the CRD benchmark.
        angle_weight: w_a; 50 there. At 0 the angles are not computed.

    Returns:
        A scalar; the means are over all B^2 pairs and B^3 triples, the trivial ones too. In float32 at least,
        also under autocast. Rows that coincide have distance 0, cosine 0 to all others, and no gradient from each
        other.

    Raises:
        ConfigError: the features are not (B, F), or the batches differ; fewer than three images, among which nothing
            can differ.

    Cost: the angles take some seven arrays of B^3 numbers, of 1 MiB each for 64 images, 64 MiB for 256. No
    array of B^2 F is made: the angles come from the distances by the law of cosines.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, sections 3.2.1 and 3.2.2.

    Example:
        >>> student, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 16)
        >>> loss = rkd_loss(student, teacher, distance_weight=25.0, angle_weight=50.0)
        >>> loss.backward()
    """
    if student_features.dim() != 2 or teacher_features.dim() != 2 or len(student_features) != len(teacher_features):
        raise ConfigError(
            f"student and teacher features must be (batch, features) of one batch, got "
            f"{tuple(student_features.shape)} and {tuple(teacher_features.shape)}; give pooled features"
        )
    check_batch("relational KD", len(student_features), 3)
    student_BB, teacher_BB = _distances(student_features), _distances(teacher_features.detach())
    loss = distance_weight * F.smooth_l1_loss(student_BB, teacher_BB)
    if angle_weight == 0:
        return loss
    return loss + angle_weight * F.smooth_l1_loss(_cosines(student_BB), _cosines(teacher_BB))


def _distances(features_BF: Tensor) -> Tensor:
    """The distances of all pairs over the mean of those that are not zero, (B, B)."""
    features_BF = at_least_float32(features_BF)
    # From differences, not from a product of matrices: near rows keep their digits, equal ones are at 0 sharp,
    # and there the gradient of cdist is 0, where that of a square root is infinite.
    distance_BB = torch.cdist(features_BF, features_BF, compute_mode="donot_use_mm_for_euclid_dist")
    total = distance_BB.sum()
    mean = total / (distance_BB > 0).sum().clamp(min=1)
    return distance_BB / mean.masked_fill(total == 0, 1.0)


def _cosines(distance_BB: Tensor) -> Tensor:
    """The cosine of the angle at j between i and k, (B, B, B); 0 where i or k coincides with j."""
    inverse_BB = 1 / distance_BB.masked_fill(distance_BB < _COINCIDE, torch.inf)
    square_BB = distance_BB.square()
    opposite_BBB = square_BB[:, :, None] + square_BB[None] - square_BB[:, None]
    cosine_BBB = opposite_BBB * (0.5 * inverse_BB[:, :, None] * inverse_BB[None])
    # Of sides of very different length, rounding makes cosines beyond 1.
    return cosine_BBB.clamp(-1, 1)
