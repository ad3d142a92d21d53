"""Transformed teacher matching. Legend: B batch, C classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from disk_kd.support import check_shapes, check_temperature, log_probabilities, teacher_log_probabilities


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence between the softened teacher and the student at temperature 1.

    Formula: ``mean_i KL( softmax(t_i / T) || softmax(s_i) )``. The softened teacher is the power transform
    ``t_c^(1/T) / sum_k t_k^(1/T)`` of its probabilities t at temperature 1.

    Only the teacher has a temperature. Compared with `kd_loss` at T this adds a reward for the student's Renyi entropy
    of order 1 / T, and so keeps the student from being overconfident:
    ``KL(t^ || s) = T KL(t^ || s^) - (T - 1) H_{1/T}(s) + (T - 1) H(t^)``, where ^ softens by T.

    It is zero where the student's logits are the teacher's divided by T, up to a constant. At T 1 it is `kd_loss` at
    temperature 1. The paper's 1 / T for CIFAR-100 is from 0.1 to 0.4 with a weight from 7 to 101, beside a
    cross-entropy with the label of weight 1, which is not part of it. It reads no labels, so images may have mixed
    labels or none.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        temperature: T > 0, of the teacher; the paper's are above 1.

    Returns:
        A scalar, the mean over the batch. There is no factor T^2: the student's gradient does not shrink with T.
        In float32 at least.

    Raises:
        ConfigError: shapes differ; the temperature is not finite and above 0.

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, equation 2.
    Departs: nothing in value; in log space throughout.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = ttm_loss(student, teacher, temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperature(temperature, usual=4.0)
    log_s_BC = log_probabilities(student_logits, 1.0)
    log_t_BC = teacher_log_probabilities(teacher_logits, temperature)
    return F.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True)
