"""DiSK's loss as released: the helper is added to the student. Legend: B batch, C classes, M support."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from disk_kd.errors import ConfigError, nearest
from disk_kd.support import (
    at_least_float32,
    check_shapes,
    check_temperatures,
    log_add_helper,
    log_probabilities,
    support,
)

Fill = Literal["min", "zero"]


def scaffolded_nll(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    helper: Tensor,
    *,
    top_k: int,
    student_temperature: float,
    teacher_temperature: float,
    weight: float = 1.0,
    fill: Fill = "min",
) -> Tensor:
    """The negative log-likelihood of the helped student under the teacher's top classes.

    Formula: ``w T_s T_t mean_i - sum_{y in M} t~_y log( softmax(s_i / T_s)_y + g_i )``, where M is the
    teacher's top K united with the label, and t~ the softmax over all C of: t / T_t on M, the fill off M;
    it is then dropped off M and not renormalised.

    It is not a divergence: it is not zero at student = teacher, and negative where s + g > 1.
    `scaffolded_kl` has neither fault.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices below C.
        helper: (B,) g in [0, 1]. The range is not checked, because the host would wait for the device in each step.
        top_k: K, from 1 to C.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.
        weight: w.
        fill: the logit off M: "min", the row's smallest teacher logit, not divided by T_t; or "zero".

    Returns:
        A scalar: the mean over the batch times w T_s T_t. In float32 at least.

    Raises:
        ConfigError: shapes differ; a temperature, `top_k` or `fill` is not valid.
        DataError: targets on the CPU lie outside the classes.

    Source: Kag, Acar, Gangrade, Saligrama, "Scaffolding a Student to Instill Knowledge", ICLR 2023, the
    objective KL(t || s + g), in the form of its released implementation.
    Departs: finite where the release is not, being computed from log-probabilities.

    Example:
        >>> s, t, y, g = torch.randn(4, 9), torch.randn(4, 9), torch.arange(4), torch.full((4,), 0.5)
        >>> keywords = {"top_k": 3, "student_temperature": 3.5, "teacher_temperature": 4.0}
        >>> loss = scaffolded_nll(s, t, y, g, **keywords)
    """
    check_shapes(student_logits, teacher_logits, targets, helper)
    check_temperatures(student_temperature, teacher_temperature)
    index_BM, member_BM = support(teacher_logits, targets, top_k)
    target_BM = _target(teacher_logits.detach(), index_BM, member_BM, teacher_temperature, fill)
    log_s_BM = log_probabilities(student_logits, student_temperature).gather(1, index_BM)
    nll_B = -(target_BM * log_add_helper(log_s_BM, at_least_float32(helper))).sum(1)
    return weight * student_temperature * teacher_temperature * nll_B.mean()


def _target(teacher_logits_BC: Tensor, index_BM: Tensor, member_BM: Tensor, temperature: float, fill: Fill) -> Tensor:
    """t~ on the support, (B, M); zero for columns that are no members."""
    logits_BC = at_least_float32(teacher_logits_BC)
    if fill == "min":
        fill_B = logits_BC.amin(1)
    elif fill == "zero":
        fill_B = torch.zeros_like(logits_BC[:, 0])
    else:
        raise ConfigError(f"fill must be 'min' or 'zero', got {fill!r}; {nearest(fill, ['min', 'zero'])}")
    scaled_BM = (logits_BC.gather(1, index_BM) / temperature).masked_fill(~member_BM, -torch.inf)
    # All classes off M share one logit: their part of the sum needs their number only, log 0 = -inf included.
    others_B = fill_B + (logits_BC.shape[1] - member_BM.sum(1)).to(fill_B.dtype).log()
    log_sum_B = torch.logaddexp(scaled_BM.logsumexp(1), others_B)
    return (scaled_BM - log_sum_B[:, None]).exp()
