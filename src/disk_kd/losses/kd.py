"""Knowledge distillation with soft targets. Legend: B batch, C classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.support import check_shapes, check_temperatures, log_probabilities


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """The Kullback-Leibler divergence of the student from the teacher, both softened.

    Formula: ``T_s T_t mean_i KL( softmax(t_i / T_t) || softmax(s_i / T_s) )``.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.

    Returns:
        A scalar: the mean over the batch times T_s T_t, which keeps the gradient's size as the temperatures
        change. In float32 at least.

    Raises:
        ConfigError: shapes differ, or a temperature is not finite and above 0.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    Departs: each model has a temperature of its own; the paper has one, T_s = T_t.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = kd_loss(student, teacher, student_temperature=4.0, teacher_temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperatures(student_temperature, teacher_temperature)
    log_s_BC = log_probabilities(student_logits, student_temperature)
    log_t_BC = log_probabilities(teacher_logits.detach(), teacher_temperature)
    kl = F.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True)
    return student_temperature * teacher_temperature * kl


class KDLoss(nn.Module):
    """`kd_loss` with its temperatures kept."""

    def __init__(self, *, student_temperature: float, teacher_temperature: float) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return kd_loss(
            student_logits,
            teacher_logits,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
