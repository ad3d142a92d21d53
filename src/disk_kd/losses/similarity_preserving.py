"""Similarity-preserving distillation. Legend: B batch, F features (a map's are C H W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32, check_batch

# Rows of similarities of a smaller norm count as zero: of features that are all zero, no direction is left.
_ZERO = 1e-12


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The difference between the student's and the teacher's similarities of the images of a batch.

    Formula: ``|| G_s - G_t ||_F^2 / B^2``, where G is ``A A^T`` with each row divided by its L2 norm, and A
    holds an image's features in each row.

    Args:
        student: (B, C, H, W) or (B, F), B at least 2; maps are flattened.
        teacher: (B, ...) of the same batch, other shapes may differ; no gradient flows into it.

    Returns:
        A scalar. In float32 at least, also under autocast. An image whose features are all zero has a row of zeros,
        and no gradient from it.

    Raises:
        ConfigError: the batches differ, or there is nothing but the batch's dimension; a batch of one, which is always
            similar to itself.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. The weight of
    3000, as in the CRD benchmark, goes with this scale.
    Departs: one layer a call; for several, add them up.

    Example:
        >>> student = torch.randn(4, 8, 4, 4, requires_grad=True)
        >>> loss = similarity_preserving_loss(student, torch.randn(4, 16, 2, 2))
        >>> loss.backward()
    """
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise ConfigError(
            f"student and teacher features must be (batch, ...) of one batch, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}; give both models the same images"
        )
    check_batch("similarity preserving", len(student), 2)
    return F.mse_loss(_similarities(student), _similarities(teacher.detach()))


def _similarities(features: Tensor) -> Tensor:
    """G, (B, B)."""
    # Autocast would do the product in half precision.
    with torch.autocast(features.device.type, enabled=False):
        features_BF = at_least_float32(features).flatten(1)
        similarity_BB = features_BF @ features_BF.T
    norm_B1 = torch.linalg.vector_norm(similarity_BB, dim=1, keepdim=True)
    return similarity_BB / norm_B1.masked_fill(norm_B1 < _ZERO, torch.inf)
