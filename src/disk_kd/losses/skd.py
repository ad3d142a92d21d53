"""Streamlined knowledge distillation. Legend: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.kd import kd_loss
from disk_kd.support import LOWEST, at_least_float32, check_batch, check_shapes, check_temperature

_MASKED = 6e4
"""How far below a row's largest logit a class counts as masked: half precision, as logits are stored, ends there."""

_ZERO = 1e-12
"""Rows of logits of a smaller norm have no direction."""


def skd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    instance_weight: float,
    direction_weight: float,
    temperature: float,
    tikhonov: float,
) -> Tensor:
    """The teacher's predictions, and the angles between the logits of a batch's images, in whitened units.

    Formula: ``w_instance T^2 mean_i KL( softmax(t_i / T) || softmax(s_i / T) ) + w_direction mean_i
    sqrt( d_i^T (Sigma + lambda I)^-1 d_i )``. The rows of D = S S^T - R R^T are the d_i, where S and R hold the
    logits of student and teacher, each row divided by its L2 norm, so that an entry of S S^T is the cosine between two
    images' logits. Sigma is the (B, B) covariance of the rows of D, divided by B - 1.

    The second term is the Mahalanobis distance of the two matrices: with L L^T = Sigma + lambda I (Cholesky) it is the
    L2 norm of L^-1 d_i. Gradients flow through Sigma too. With w_direction 0 it is `kd_loss`.

    The angles depend on what all logits of an image have in common, so a constant added to a row changes the loss. A
    class that the teacher masks, with a logit of minus infinity, counts as 0 in both directions. An image whose
    logits are all zero has no direction: its cosines are 0, and no gradient flows through them.

    Args:
        student_logits: (B, C), B at least 2 unless w_direction is 0.
        teacher_logits: (B, C); no gradient flows into them.
        instance_weight: w_instance.
        direction_weight: w_direction.
        temperature: T > 0, for student and teacher, of the first term only.
        tikhonov: lambda > 0, which keeps the covariance from being singular.

    Returns:
        A scalar. In float32 at least, also under autocast; the covariance is factored in float64 where there is such.

    Raises:
        ConfigError: shapes differ; the temperature or `tikhonov` is not finite and above 0; the batch is too small.

    Source: Jeong, Lee, Choi, "Streamlined Knowledge Distillation", CVPR 2026, equations 1 and 3 to 8, as the
    independent implementation of torchdistill 1.1.5 gives them. The paper has no numbers for T and lambda; those
    of the release are 4 and 0.1, with weights of 0.9 on each term beside 0.1 on the cross-entropy.
    Departs: T^2 follows the release, equation 1 has none. Two things of the release are not followed, since the
    paper does not have them: it divides both matrices by C, and multiplies the means by the share of images, or
    classes, of which the teacher is less sure than the median.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> settings = {"instance_weight": 1.0, "direction_weight": 1.0, "temperature": 4.0, "tikhonov": 0.1}
        >>> skd_loss(student, teacher, **settings).backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperature(temperature, usual=4.0)
    if not 0 < tikhonov < math.inf:
        raise ConfigError(f"tikhonov must be finite and above 0, got {tikhonov}; try 0.1")
    both = {"student_temperature": temperature, "teacher_temperature": temperature}
    instance = kd_loss(student_logits, teacher_logits, **both)
    if not direction_weight:
        return instance_weight * instance
    check_batch("SKD's relation of directions", len(student_logits), 2)
    t_BC = at_least_float32(teacher_logits.detach()).clamp(min=LOWEST)
    masked_BC = t_BC < t_BC.amax(1, keepdim=True) - _MASKED
    # Autocast would do the products in half precision.
    with torch.autocast(student_logits.device.type, enabled=False):
        s_BB = _cosines(at_least_float32(student_logits).masked_fill(masked_BC, 0))
        distance = _whitened_norm(s_BB - _cosines(t_BC.masked_fill(masked_BC, 0)), tikhonov)
    return instance_weight * instance + direction_weight * distance


def _cosines(logits_BC: Tensor) -> Tensor:
    """(B, B) between the rows."""
    norm_B1 = torch.linalg.vector_norm(logits_BC, dim=1, keepdim=True)
    rows_BC = logits_BC / norm_B1.masked_fill(norm_B1 < _ZERO, math.inf)
    return rows_BC @ rows_BC.T


def _whitened_norm(d_BB: Tensor, tikhonov: float) -> Tensor:
    """The mean L2 norm of the rows, whitened by their own covariance and `tikhonov` on its diagonal."""
    dtype = d_BB.dtype
    # In float32 the factors of a large batch with a small diagonal may not exist. Apple's devices know no other.
    rows_BB = d_BB if d_BB.device.type == "mps" else d_BB.double()
    centred_BB = rows_BB - rows_BB.mean(0)
    covariance_BB = centred_BB.T @ centred_BB / (len(d_BB) - 1)
    diagonal_BB = tikhonov * torch.eye(len(d_BB), dtype=rows_BB.dtype, device=d_BB.device)
    # cholesky() and cov() look at values, which stops an accelerator.
    factor_BB = torch.linalg.cholesky_ex(covariance_BB + diagonal_BB).L
    whitened_BB = torch.linalg.solve_triangular(factor_BB, rows_BB.T, upper=False)
    return torch.linalg.vector_norm(whitened_BB, dim=0).mean().to(dtype)
