"""Weighted transformed teacher matching. Legend: B batch, C classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from disk_kd.support import check_shapes, check_temperature, log_probabilities, teacher_log_probabilities


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """`ttm_loss` with a weight for each image: the smoother the teacher's probabilities, the larger the weight.

    Formula: ``mean_i U_i KL( softmax(t_i / T) || softmax(s_i) )``, where ``U_i = sum_c p_ic^(1/T)`` is the power sum
    of p_i = softmax(t_i). For T above 1 it lies between 1, where the teacher is sure of one class, and C^(1 - 1/T),
    where all classes are alike to it.

    It is zero where `ttm_loss` is. At T 1 all weights are 1. Since the weights are 1 or more, the method's weight is
    smaller than that of `ttm_loss`: for CIFAR-100 the paper's 1 / T is from 0.1 to 0.4 with a weight from 1.4 to 16,
    for ImageNet 0.8 with 1.6 (ResNet-34 to ResNet-18) and 0.7 with 3.5 (ResNet-50 to MobileNet), beside a
    cross-entropy with the label of weight 1, which is not part of it. It reads no labels, so images may have mixed
    labels or none.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        temperature: T > 0, of the teacher; the paper's are above 1. Below 1 the sure images weigh most.

    Returns:
        A scalar, the mean over the batch, without a factor T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; the temperature is not finite and above 0.

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, equations 22 and 23.
    Departs: nothing in value; in log space throughout.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = wttm_loss(student, teacher, temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperature(temperature, usual=4.0)
    log_s_BC = log_probabilities(student_logits, 1.0)
    log_t_BC = teacher_log_probabilities(teacher_logits, temperature)
    power_sum_B = (teacher_log_probabilities(teacher_logits, 1.0) / temperature).logsumexp(1).exp()
    kl_B = F.kl_div(log_s_BC, log_t_BC, reduction="none", log_target=True).sum(1)
    return (power_sum_B * kl_B).mean()
