"""Normalised knowledge distillation. Legend: B batch, C classes, R = C - 1 classes other than the label."""

from __future__ import annotations

from torch import Tensor

from disk_kd.support import (
    check_shapes,
    check_temperature,
    log_probabilities,
    other_classes,
    teacher_log_probabilities,
)


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, gamma: float, temperature: float
) -> Tensor:
    """Two cross-entropies: the label's, weighted by the teacher, and the normalised one of the other classes.

    Formula: ``mean_i ( -t_y log s_y - gamma T^2 sum_{c != y} t^_c log s^_c )``, where s = softmax(s_i) and
    t = softmax(t_i) at temperature 1, y is the label, and s^ and t^ are the softmax of s_i / T and t_i / T over
    the classes other than y.

    These are cross-entropies, not divergences: the loss is not zero at student = teacher. The second term differs from
    gamma times NCKD of `dkd_loss` by the entropy of t^, which the student does not move. The paper's settings
    are gamma 1.5, T 1. The plain cross-entropy with the label, which the paper adds, is not part of it.

    Args:
        student_logits: (B, C), C at least 2. With C = 2 the second term is zero.
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices below C.
        gamma: the weight of the second term.
        temperature: T > 0, of the second term only.

    Returns:
        A scalar: the mean over the batch, T^2 on the second term. In float32 at least.

    Raises:
        ConfigError: shapes differ; there is one class only; the temperature is not finite and above 0.
        DataError: targets on the CPU lie outside the classes.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, the loss NKD.
    Departs: from some of its released versions, whose mask leaves the label among the other classes by mistake.

    Example:
        >>> s, t, y = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10), torch.arange(4)
        >>> loss = nkd_loss(s, t, y, gamma=1.5, temperature=1.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits, targets)
    check_temperature(temperature)
    label_B1 = targets[:, None]
    log_s_B1 = log_probabilities(student_logits, 1.0).gather(1, label_B1)
    log_t_B1 = teacher_log_probabilities(teacher_logits, 1.0).gather(1, label_B1)
    log_s_BR = log_probabilities(other_classes(student_logits, targets), temperature)
    log_t_BR = teacher_log_probabilities(other_classes(teacher_logits, targets), temperature)
    label = -(log_t_B1.exp() * log_s_B1).mean()
    others = -(log_t_BR.exp() * log_s_BR).sum(1).mean()
    return label + gamma * temperature**2 * others
