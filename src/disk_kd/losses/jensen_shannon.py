"""The Jensen-Shannon divergence of softened predictions. Legend: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import check_shapes, check_temperatures, log_probabilities, teacher_log_probabilities


def jensen_shannon_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    skew: float = 0.5,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The skewed Jensen-Shannon divergence of student and teacher, both softened.

    Formula: ``T_s T_t / (b (1 - b)) mean_i [ b KL(t_i || m_i) + (1 - b) KL(s_i || m_i) ]``, with
    t = softmax(teacher / T_t), s = softmax(student / T_s) and m = b t + (1 - b) s, b the skew.

    It is at most T_s T_t H(b) / (b (1 - b)), with H the entropy of a coin with probability b. This limits the weight of
    images that the student cannot fit. It tends to `kd_loss` as b tends to 0, and to the reverse divergence KL(s || t)
    as b tends to 1. Near s = t it has the curvature of both, so weights for `kd_loss` keep their meaning.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        skew: b, above 0 and below 1; 0.5 is four times the usual divergence.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.

    Returns:
        A scalar. In float32 at least.

    Raises:
        ConfigError: shapes differ; a temperature is not finite and above 0; the skew is not between 0 and 1.

    Source: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory, 1991; as a
    loss of distillation Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, equation 1.
    Departs: divided by b (1 - b).

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = jensen_shannon_loss(student, teacher, student_temperature=1.0, teacher_temperature=1.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperatures(student_temperature, teacher_temperature)
    if not 0 < skew < 1:
        raise ConfigError(f"skew must be above 0 and below 1, got {skew}; try 0.5")
    log_s_BC = log_probabilities(student_logits, student_temperature)
    log_t_BC = teacher_log_probabilities(teacher_logits, teacher_temperature)
    log_m_BC = torch.logaddexp(log_t_BC + math.log(skew), log_s_BC + math.log1p(-skew))
    from_teacher = (log_t_BC.exp() * (log_t_BC - log_m_BC)).sum(1).mean()
    from_student = (log_s_BC.exp() * (log_s_BC - log_m_BC)).sum(1).mean()
    return student_temperature * teacher_temperature * (from_teacher / (1 - skew) + from_student / skew)
