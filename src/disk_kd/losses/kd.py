"""Knowledge distillation with soft targets. Legend: B batch, C classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import check_shapes, check_temperatures, log_probabilities, teacher_log_probabilities


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    reverse: float = 0.0,
) -> Tensor:
    """The Kullback-Leibler divergence between the softened teacher and the softened student.

    Formula: ``T_s T_t mean_i KL( softmax(t_i / T_t) || softmax(s_i / T_s) )``; with `reverse` r above 0,
    1 - r of that and r of the divergence with its arguments exchanged.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.
        reverse: r, from 0 to 1: share of the reverse divergence, which favours the teacher's most likely classes.

    Returns:
        A scalar: the mean over the batch times T_s T_t, which keeps the gradient's size as the temperatures
        change. In float32 at least.

    Raises:
        ConfigError: shapes differ, a temperature is not finite and above 0, or `reverse` is not from 0 to 1.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    Departs: each model has a temperature of its own; the paper has one, T_s = T_t. It has no reverse divergence.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = kd_loss(student, teacher, student_temperature=4.0, teacher_temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperatures(student_temperature, teacher_temperature)
    log_s_BC = log_probabilities(student_logits, student_temperature)
    log_t_BC = teacher_log_probabilities(teacher_logits, teacher_temperature)
    if not 0 <= reverse <= 1:
        raise ConfigError(f"reverse must be from 0 to 1, got {reverse}; try 0.5")
    kl = F.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True)
    if reverse:
        # A masked class makes this direction infinite, which it must be here too.
        log_t_BC = log_probabilities(teacher_logits.detach(), teacher_temperature)
        kl = (1 - reverse) * kl + reverse * F.kl_div(log_t_BC, log_s_BC, reduction="batchmean", log_target=True)
    return student_temperature * teacher_temperature * kl
