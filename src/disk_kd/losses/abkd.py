"""Distillation with the alpha-beta divergence. Legend: B batch, C classes."""

from __future__ import annotations

import math

from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import check_shapes, check_temperature, log_probabilities, teacher_log_probabilities


def abkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """The alpha-beta divergence between the softened teacher and the softened student.

    Formula: ``T^2 mean_i D(t_i || s_i)`` with s = softmax(s_i / T), t = softmax(t_i / T) and, for a = alpha, b = beta,
    ``D(t || s) = -1 / (a b) sum_c ( t_c^a s_c^b - a / (a + b) t_c^(a + b) - b / (a + b) s_c^(a + b) )``.
    At a = 0 and at b = 0 it is continued by its limits,
    ``D = 1 / a^2 sum_c ( t_c^a log(t_c^a / s_c^a) - t_c^a + s_c^a )`` at b = 0, and at a = 0 the same with t and s
    exchanged and b for a.

    With (a, b) = (1, 0) it is `kd_loss`, with (0, 1) the reverse divergence. With (0.5, 0.5) it is twice the squared
    distance of the square roots (Hellinger), with (1, 1) half the squared distance. A smaller a gives large errors
    more weight. A larger b gives more weight to classes of which the student is certain. It is zero at student =
    teacher. It reads no labels, so images may have mixed labels or none. The cross-entropy with the label, of weight 1,
    is not part of it.

    The release's settings for resnet56 to resnet20 on CIFAR-100 are a 0.8, b 0.3, T 4 with weight 32, which is 2 beside
    the T^2 here.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them. With a = 0 a class that the teacher masks with a logit of
            minus infinity makes the loss infinite.
        alpha: a, 0 or more.
        beta: b, 0 or more; not 0 where a is.
        temperature: T > 0, for student and teacher.

    Returns:
        A scalar: the mean over the batch times T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; a or b is negative or not finite, or both are 0; the temperature is not finite and
            above 0.

    Source: Wang, Yang, Wang, Wang, Xu, Huang, "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
    Distillation via alpha-beta-Divergence", ICML 2025, definition 4.1; Cichocki, Cruces, Amari, "Generalized
    Alpha-Beta Divergences and Their Application to Robust Nonnegative Matrix Factorization", Entropy 2011.
    Departs: T^2, which the release leaves to the weight. Negative a and b, which the paper allows, are refused: small
    probabilities would blow up. The limits are those of the definition, with 1 / a^2; the release has 1 / a there,
    which is the same for a = 1 only.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = abkd_loss(student, teacher, alpha=0.8, beta=0.3, temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperature(temperature, usual=4.0)
    check_powers(alpha, beta)
    log_s_BC = log_probabilities(student_logits, temperature)
    log_t_BC = teacher_log_probabilities(teacher_logits, temperature)
    if beta == 0:
        divergence_BC = _limit(log_t_BC, log_s_BC, alpha)
    elif alpha == 0:  # here a masked class must make it infinite
        divergence_BC = _limit(log_s_BC, log_probabilities(teacher_logits.detach(), temperature), beta)
    else:
        both = alpha + beta
        divergence_BC = (
            (both * log_t_BC).exp() / (beta * both)
            + (both * log_s_BC).exp() / (alpha * both)
            - (alpha * log_t_BC + beta * log_s_BC).exp() / (alpha * beta)
        )
    return temperature**2 * divergence_BC.sum(1).mean()


def check_powers(alpha: float, beta: float) -> None:
    """Raises ConfigError unless both are numbers of 0 or more, and one is above 0."""
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf and alpha + beta > 0):
        raise ConfigError(f"alpha and beta must be 0 or more, and not both 0, got {alpha} and {beta}; try 0.8 and 0.3")


def _limit(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    """1 / a^2 ( p^a log(p^a / q^a) - p^a + q^a ), of each class."""
    log_p, log_q = power * log_p, power * log_q
    return (log_p.exp() * (log_p - log_q - 1) + log_q.exp()) / power**2
