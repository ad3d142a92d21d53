"""Refined logit distillation. Legend: B batch, C classes, R = C - 1 classes other than one of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.support import (
    LOWEST,
    check_shapes,
    check_temperature,
    log_probabilities,
    other_classes,
    teacher_log_probabilities,
)

_MASKED = 1e5 * LOWEST
"""Takes the place of a masked logit: far below `LOWEST`, a class that the teacher itself leaves out."""


def rld_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """The teacher's confidence, required for the label, and the classes that it ranks below the label.

    Formula: ``T^2 mean_i ( alpha SCD_i + beta MCD_i )`` with s = softmax(s_i / T), t = softmax(t_i / T), the label y:

    - sample confidence ``SCD = KL( (max t, 1 - max t) || (s_y, 1 - s_y) )``: the student gives its label the
      probability that the teacher gives its favourite, whichever class that is;
    - masked correlation ``MCD = KL( t~ || s~ )``, where t~ and s~ are softmax(t_i / T) and softmax(s_i / T) over the
      classes whose teacher logit is below the label's. The label itself, and every class that the teacher ranks as
      high, is left out. Where none is left, where the label is the teacher's last class, MCD is 0.

    A teacher that is wrong thus teaches no wrong class. Where it is right, and no other class ties with the label, this
    is `dkd_loss`, which is zero at student = teacher. Where it is wrong, the loss is not zero there.

    The settings of the release for CIFAR-100 are alpha 1, beta 8, T 4, for ImageNet (ResNet-34 to ResNet-18) alpha 1,
    beta 0.5, T 1. The cross-entropy with the label, of weight 1, is not part of it.

    It needs one label for each image. Mixed labels and images without a label are not supported.

    Args:
        student_logits: (B, C), C at least 2.
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices below C.
        alpha: the weight of SCD.
        beta: the weight of MCD.
        temperature: T > 0, for student and teacher.

    Returns:
        A scalar: the mean over the batch times T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; there is one class only; the temperature is not finite and above 0.

    Source: Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", ICCV 2025, the losses
    L_SCD and L_MCD with the mask M_ge.
    Departs: nothing in value. The release can give SCD a temperature of its own; this follows the paper, which has one,
    as does the release's own command for CIFAR-100.

    Example:
        >>> s, t, y = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10), torch.arange(4)
        >>> loss = rld_loss(s, t, y, alpha=1.0, beta=8.0, temperature=4.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits, targets)
    check_temperature(temperature, usual=4.0)
    log_s_BC = log_probabilities(student_logits, temperature)
    log_t_BC = teacher_log_probabilities(teacher_logits, temperature)
    scd = _divergence(_one_or_not(log_s_BC, targets), _one_or_not(log_t_BC, log_t_BC.argmax(1)))
    teacher_BC = teacher_logits.detach()
    masked_BC = teacher_BC >= teacher_BC.gather(1, targets[:, None])
    mcd = _divergence(*(x_BC.masked_fill(masked_BC, _MASKED).log_softmax(1) for x_BC in (log_s_BC, log_t_BC)))
    return temperature**2 * (alpha * scd + beta * mcd)


def _one_or_not(log_BC: Tensor, classes_B: Tensor) -> Tensor:
    """log (p_c, 1 - p_c) of one class an image. The second is summed from its parts, as 1 - p_c may round to 0."""
    rest_B1 = other_classes(log_BC, classes_B).logsumexp(1, keepdim=True)
    return torch.cat([log_BC.gather(1, classes_B[:, None]), rest_B1], dim=1)


def _divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL( t || s ) from log-probabilities, the mean over the batch."""
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
