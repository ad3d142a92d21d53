"""Decoupled knowledge distillation. Legend: B batch, C classes, R = C - 1 classes other than the label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.support import (
    check_shapes,
    check_temperature,
    log_probabilities,
    other_classes,
    teacher_log_probabilities,
)


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """The KL divergence in two parts with separate weights: the label's probability, and the other classes.

    Formula: ``T^2 mean_i ( alpha TCKD_i + beta NCKD_i )``, where, with s = softmax(s_i / T), t = softmax(t_i / T)
    and the label y, ``TCKD = KL( (t_y, 1 - t_y) || (s_y, 1 - s_y) )`` and ``NCKD = KL( t^ || s^ )`` with
    ``t^_c = t_c / (1 - t_y)`` and s^ alike, over the classes c != y.

    With alpha = 1 and beta = 1 - t_y of each image it is `kd_loss` at one temperature. The paper's settings for
    CIFAR-100 are alpha 1, beta 8, T 4. The cross-entropy with the label is not part of it.

    Args:
        student_logits: (B, C), C at least 2. With C = 2 NCKD is zero.
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices below C.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.
        temperature: T > 0, for student and teacher.

    Returns:
        A scalar: the mean over the batch times T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; there is one class only; the temperature is not finite and above 0.
        DataError: targets on the CPU lie outside the classes.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, equation 7.
    Departs: nothing in value; in log space throughout, so that it is finite where a probability rounds to 0 or 1.

    Example:
        >>> s, t, y = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10), torch.arange(4)
        >>> loss = dkd_loss(s, t, y, alpha=1.0, beta=8.0, temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits, targets)
    check_temperature(temperature, usual=4.0)
    log_s_BC = log_probabilities(student_logits, temperature)
    log_t_BC = teacher_log_probabilities(teacher_logits, temperature)
    log_s_BR, log_t_BR = other_classes(log_s_BC, targets), other_classes(log_t_BC, targets)
    tckd = _divergence(_label_or_not(log_s_BC, log_s_BR, targets), _label_or_not(log_t_BC, log_t_BR, targets))
    nckd = _divergence(log_s_BR.log_softmax(1), log_t_BR.log_softmax(1))
    return temperature**2 * (alpha * tckd + beta * nckd)


def _label_or_not(log_BC: Tensor, log_BR: Tensor, targets_B: Tensor) -> Tensor:
    """log (p_y, 1 - p_y). The second is summed from its parts: 1 - p_y rounds to 0 where p_y is near 1."""
    return torch.cat([log_BC.gather(1, targets_B[:, None]), log_BR.logsumexp(1, keepdim=True)], dim=1)


def _divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL( t || s ) from log-probabilities, the mean over the batch."""
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
