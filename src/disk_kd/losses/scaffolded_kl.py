"""DiSK's normalised loss: the helped student is a distribution. Legend: B batch, C classes, M support."""

from __future__ import annotations

import torch
from torch import Tensor

from disk_kd.support import (
    at_least_float32,
    check_shapes,
    check_temperatures,
    log_add_helper,
    log_probabilities,
    support,
    teacher_log_probabilities,
)


def scaffolded_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    helper: Tensor,
    *,
    top_k: int,
    student_temperature: float,
    teacher_temperature: float,
    mass: float = 1.0,
    outside_student: bool = False,
) -> Tensor:
    """The Kullback-Leibler divergence between the teacher and the helped student.

    Formula: ``mean_i KL( t_i || q_i )``, ``q_y = (s_y + g 1[y in M]) / (1 + |M| g)``, where
    s = softmax(student / T_s), t = softmax(teacher / T_t) over all classes, and M is the teacher's top K
    united with the label; or another choice of M. Never negative; zero where q = t; the plain divergence where g = 0.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices below C.
        helper: (B,) g in [0, 1]. The range is not checked, because the host would wait for the device in each step.
        top_k: K, from 0 to C; 0: M is the label.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.
        mass: keep only the first of the top K classes until t reaches this sum, above 0 and at most 1.
        outside_student: M is all classes except the *student's* top K, united with the label.

    Returns:
        A scalar: the mean over the batch, *without* the factor T_s T_t of `kd_loss`. In float32 at least.

    Raises:
        ConfigError: shapes differ; a temperature, `top_k` or `mass` is not valid.
        DataError: targets on the CPU lie outside the classes.

    Source: after Kag, Acar, Gangrade, Saligrama, "Scaffolding a Student to Instill Knowledge", ICLR 2023,
    the objective KL(t || s + g).
    Departs: s + g is divided by its sum, t keeps its full support, and there is no factor T_s T_t.

    Example:
        >>> s, t, y, g = torch.randn(4, 9), torch.randn(4, 9), torch.arange(4), torch.full((4,), 0.5)
        >>> keywords = {"top_k": 3, "student_temperature": 1.0, "teacher_temperature": 1.0}
        >>> loss = scaffolded_kl(s, t, y, g, **keywords)
    """
    check_shapes(student_logits, teacher_logits, targets, helper, shares=True)
    check_temperatures(student_temperature, teacher_temperature)
    helper_B = at_least_float32(helper)
    log_s_BC = log_probabilities(student_logits, student_temperature)
    log_t_BC = teacher_log_probabilities(teacher_logits, teacher_temperature)
    ranked_BC = student_logits if outside_student else None
    index_BM, member_BM = support(
        teacher_logits, targets, top_k, mass=mass, temperature=teacher_temperature, outside_BC=ranked_BC
    )
    log_s_BM, log_t_BM = log_s_BC.gather(1, index_BM), log_t_BC.gather(1, index_BM)

    # The help touches M only, so it is worked out on M's columns; off M the terms are those of KL(t || s).
    outside_BC = (log_t_BC.exp() * (log_t_BC - log_s_BC)).scatter(1, index_BM, 0.0)
    inside_BM = log_t_BM.exp() * member_BM * (log_t_BM - log_add_helper(log_s_BM, helper_B))
    log_total_B = torch.log1p(member_BM.sum(1) * helper_B)
    loss = (outside_BC.sum(1) + inside_BM.sum(1) + log_total_B).mean()
    # Rounding can leave -1e-8; lifting the value alone keeps the gradient, which a clamp would cut.
    return loss - loss.detach().clamp(max=0)
