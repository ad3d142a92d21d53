"""Distillation from a stronger teacher by correlation. Legend: B batch, C classes."""

from __future__ import annotations

from torch import Tensor

from disk_kd.losses.standardise import standardise
from disk_kd.support import check_batch, check_shapes, check_temperature, log_probabilities


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, inter_weight: float, intra_weight: float, temperature: float
) -> Tensor:
    """One minus the correlation of student and teacher, within each image and within each class.

    Formula: ``T^2 ( w_inter mean_i d(s_i, t_i) + w_intra mean_c d(s_c, t_c) )``, where d = 1 - Pearson's correlation,
    and s_i, t_i are the rows, s_c, t_c the columns of the (B, C) matrices softmax(student / T), softmax(teacher / T).

    Where a row or a column has no spread, in student or teacher, no correlation is defined: it counts as 0, so
    d = 1, and no gradient flows into it. In a batch of one that is every column, and any two numbers correlate
    perfectly: below three images the second term has no gradient, and is refused. Elsewhere the loss is zero at
    student = teacher, and at most twice T^2 (w_inter + w_intra).

    The paper's w_inter and w_intra (its beta and gamma) are 2 and 2 and, for CIFAR-100, T 4; the cross-entropy with
    the label, of weight 1, is not part of it.

    Args:
        student_logits: (B, C), B at least 3 unless w_intra is 0.
        teacher_logits: (B, C); no gradient flows into them.
        inter_weight: w_inter, on the relations among an image's classes.
        intra_weight: w_intra, on the relations among a class's images. They are those of this batch.
        temperature: T > 0, for student and teacher.

    Returns:
        A scalar, times T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; the temperature is not finite and above 0; the batch is too small.

    Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, the losses
    L_inter and L_intra.
    Departs: T^2 follows the release. "No spread" is a standard deviation of the
    probabilities up to 1e-7, where the release adds 1e-8 to the product of the norms.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = dist_loss(student, teacher, inter_weight=2.0, intra_weight=2.0, temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperature(temperature, usual=4.0)
    if intra_weight > 0:
        check_batch("DIST's relation within a class", len(student_logits), 3)
    s_BC = log_probabilities(student_logits, temperature).exp()
    t_BC = log_probabilities(teacher_logits.detach(), temperature).exp()
    inter, intra = _row_distance(s_BC, t_BC), _row_distance(s_BC.T, t_BC.T)
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _row_distance(a_RN: Tensor, b_RN: Tensor) -> Tensor:
    """1 - Pearson's correlation, the mean product of z-scores, on average over R rows of N numbers."""
    return 1 - (standardise(a_RN) * standardise(b_RN)).mean()
