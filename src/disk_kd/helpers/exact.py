"""The exact helper: the optimal help for each image, computed for the whole batch at once.

Legend: B batch, C classes, M the columns of the support. docs/math.md derives it.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from disk_kd.errors import ConfigError, nearest
from disk_kd.support import (
    at_least_float32,
    check_shapes,
    check_temperatures,
    label_cross_entropy,
    log_add_helper,
    log_probabilities,
    support,
)

Unit = Literal["ce", "help", "examples"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""Units of help: cross-entropy times help in nats, help itself, or number of helped images."""

# Twelve steps bring the objective to its minimum within rounding, 1e-13 nats, whether logits are nearly uniform
# or one-hot and whatever the price; usual batches need six.
_STEPS = 12


@torch.no_grad()
def exact_helper(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    top_k: int,
    student_temperature: float,
    teacher_temperature: float,
    price: float | Tensor,
    max_ce: float,
    unit: Unit = "ce",
    priced_logits: Tensor | None = None,
    mass: float = 1.0,
    outside_student: bool = False,
) -> Tensor:
    """The help g in [0, 1] that minimises `scaffolded_kl` plus the price of help, for each image.

    Formula: ``argmin_g KL( t || (s + g 1_M) / (1 + |M| g) ) + mu g c``, with s and t the tempered softmaxes and M the
    teacher's top K united with the label, or another support of `scaffolded_kl`. The unit c of the help is
    min(CE, max_ce), CE the cross-entropy of the student, at temperature 1, against the label ("ce"); or 1 ("help").
    The result is 0, 1, or the one root of ``F(g) = -sum_{y in M} t_y / (s_y + g) + |M| / (1 + |M| g) + mu c``.
    With the unit "examples" each helped image costs mu: it gets the g of price 0 if that lowers the divergence by more
    than mu, else 0.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        targets: (B,) int64 class indices below C, or (B, C) shares of the classes in mixed images, which CE is then
            taken against.
        top_k: K, from 0 to C.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.
        price: mu >= 0, nats of KL per unit of help; a number or a 0-dim tensor.
        max_ce: cap on CE in nats, above 0.
        unit: unit of the help: "ce", "help" or "examples".
        priced_logits: (B, C), the student's logits for CE if `student_logits` are standardised; None: `student_logits`.
        mass, outside_student: as for `scaffolded_kl`.

    Returns:
        (B,) in [0, 1], without gradient, in float32 at least. Where help lowers the objective by no more
        than rounding, exactly 0.

    Raises:
        ConfigError: shapes differ; a temperature, `top_k`, `mass`, `max_ce` or the unit is not valid.
        DataError: targets on the CPU lie outside the classes.

    Source: this project; after Kag, Acar, Gangrade, Saligrama, "Scaffolding a Student to Instill Knowledge",
    ICLR 2023, whose alternation's second step it solves in closed loop.

    Example:
        >>> s, t, y = torch.randn(4, 9), torch.randn(4, 9), torch.arange(4)
        >>> temperatures = {"student_temperature": 1.0, "teacher_temperature": 1.0}
        >>> g = exact_helper(s, t, y, top_k=3, price=0.5, max_ce=5.0, **temperatures)
    """
    check_shapes(student_logits, teacher_logits, targets, shares=True)
    check_temperatures(student_temperature, teacher_temperature)
    if not max_ce > 0:
        raise ConfigError(f"max_ce must be above 0, got {max_ce}; try 5.0")
    if unit not in UNITS:
        raise ConfigError(f"unknown unit {unit!r} of help; {nearest(unit, UNITS)}")
    ranked_BC = student_logits if outside_student else None
    index_BM, member_BM = support(
        teacher_logits, targets, top_k, mass=mass, temperature=teacher_temperature, outside_BC=ranked_BC
    )
    log_s_BM = log_probabilities(student_logits, student_temperature).gather(1, index_BM)
    s_BM = log_s_BM.exp()
    t_BM = log_probabilities(teacher_logits, teacher_temperature).gather(1, index_BM).exp() * member_BM
    count_B = member_BM.sum(1).to(s_BM.dtype)
    if unit == "examples":
        g_B = _minimise(s_BM, t_BM, count_B, torch.zeros_like(count_B))
        gain_B = (t_BM * (log_add_helper(log_s_BM, g_B) - log_s_BM)).sum(1) - torch.log1p(count_B * g_B)
        return g_B * (gain_B > price)
    cost_B = torch.ones_like(count_B)
    if unit == "ce":
        priced_BC = at_least_float32(student_logits if priced_logits is None else priced_logits)
        cost_B = label_cross_entropy(priced_BC, targets).clamp(max=max_ce)
    return _minimise(s_BM, t_BM, count_B, price * cost_B)


def _minimise(s_BM: Tensor, t_BM: Tensor, count_B: Tensor, cost_B: Tensor) -> Tensor:
    """0 or 1 if the slope has one sign on [0, 1], else the root."""
    info = torch.finfo(s_BM.dtype)
    # Where s = t, or both are flat, the slope at 0 is rounding alone; no help then. All help where it is so at 1.
    rounding_B = 16 * info.eps * (count_B + cost_B)
    none_B = _slope(torch.zeros_like(cost_B), s_BM.clamp(min=info.tiny), t_BM, count_B, cost_B) >= -rounding_B
    full_B = _slope(torch.ones_like(cost_B), s_BM, t_BM, count_B, cost_B) <= rounding_B
    root_B = _root(s_BM, t_BM, count_B, cost_B)
    return torch.where(none_B, 0.0, torch.where(full_B, 1.0, root_B))


def _slope(g_B: Tensor, s_BM: Tensor, t_BM: Tensor, count_B: Tensor, cost_B: Tensor) -> Tensor:
    """F(g), the derivative of the objective."""
    return -(t_BM / (s_BM + g_B[:, None])).sum(1) + count_B / (1 + count_B * g_B) + cost_B


def _root(s_BM: Tensor, t_BM: Tensor, count_B: Tensor, cost_B: Tensor) -> Tensor:
    """The zero of F in [0, 1], by Newton steps on reciprocals, kept in a bracket.

    With A = sum t / (s + g) and R = |M| / (1 + |M| g) + cost, the steps solve 1/A = 1/R: both sides are
    nearly straight, while A - R has a pole at each -s_y, which draws Newton's steps out.
    """
    low_B, high_B = torch.zeros_like(cost_B), torch.ones_like(cost_B)
    # One term of A is less than A, and R is less than |M| + cost: the root lies to the right of this start.
    g_B = (t_BM / (count_B + cost_B)[:, None] - s_BM).amax(1).clamp(1e-12, 1.0)
    for _ in range(_STEPS):
        inverse_BM = 1 / (s_BM + g_B[:, None])
        terms_BM = t_BM * inverse_BM
        a_B = terms_BM.sum(1)
        total_B = 1 + count_B * g_B
        weight_B = count_B + cost_B * total_B
        gap_B = 1 / a_B - total_B / weight_B
        gap_slope_B = (terms_BM * inverse_BM).sum(1) / a_B**2 - (count_B / weight_B) ** 2
        low_B = torch.where(gap_B < 0, g_B, low_B)
        high_B = torch.where(gap_B < 0, high_B, g_B)
        newton_B = g_B - gap_B / gap_slope_B
        inside_B = (newton_B >= low_B) & (newton_B <= high_B)
        g_B = torch.where(inside_B, newton_B, (low_B + high_B) / 2)
    return g_B
