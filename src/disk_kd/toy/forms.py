"""The losses of the toy problems, as functions of logits with the help already chosen.

Shape letters: B batch (the examples of one student), C classes. Temperatures are 1, and all classes can get help. If
help has a price, it is part of the loss: the loss is the minimum over g of the paper's whole objective. At the minimum
the derivative in g is zero, so g counts as a constant in the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.helpers import exact_helper
from disk_kd.losses import scaffolded_kl, scaffolded_nll

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps student logits (B, C), teacher logits (B, C) and targets (B,) to a scalar."""

_TEMPERATURES: dict[str, Any] = {"student_temperature": 1.0, "teacher_temperature": 1.0}
_NEWTON_STEPS = 10
_PRICE_STEPS = 20


@dataclass(frozen=True)
class Form:
    """A loss and its title."""

    title: str
    loss: Loss


def kd() -> Form:
    """KL(t || s), the normalised form without help. `kd_loss` is the same, but torch's kl_div has no batched form."""
    return Form("KD", constant(0.0).loss)


def constant(help: float) -> Form:
    """The normalised form with one g for all classes. It is -sum t log(s + g) up to a constant."""

    def loss(student_BC: Tensor, teacher_BC: Tensor, targets_B: Tensor) -> Tensor:
        help_B = torch.full_like(student_BC[:, 0], help)
        return scaffolded_kl(student_BC, teacher_BC, targets_B, help_B, top_k=student_BC.shape[1], **_TEMPERATURES)

    return Form(f"constant g = {help:g}", loss)


def exact(price: float) -> Form:
    """min over g of KL(t || q(g)) + price g CE, the normalised form with the exact helper."""

    def loss(student_BC: Tensor, teacher_BC: Tensor, targets_B: Tensor) -> Tensor:
        keywords = {"top_k": student_BC.shape[1], **_TEMPERATURES}
        help_B = exact_helper(student_BC.detach(), teacher_BC, targets_B, price=price, max_ce=math.inf, **keywords)
        cost = (help_B * F.cross_entropy(student_BC, targets_B, reduction="none")).mean()
        return scaffolded_kl(student_BC, teacher_BC, targets_B, help_B, **keywords) + price * cost

    return Form(f"normalised, price {price:g}", loss)


def paper(price: float, budget: float = 0.0) -> Form:
    """min over g of -sum t log(s + g) + price max(0, mean g CE - budget), the poster's form with the best possible
    helper.
    """

    def loss(student_BC: Tensor, teacher_BC: Tensor, targets_B: Tensor) -> Tensor:
        ce_B = F.cross_entropy(student_BC, targets_B, reduction="none")
        with torch.no_grad():
            paid = _price_of_budget(student_BC, teacher_BC, ce_B, price, budget)
            help_B = best_help(student_BC, teacher_BC, paid * ce_B)
        nll = scaffolded_nll(student_BC, teacher_BC, targets_B, help_B, top_k=student_BC.shape[1], **_TEMPERATURES)
        return nll + paid * ((help_B * ce_B).mean() - budget)

    return Form(f"paper form, price {price:g}" + (f", budget {budget:g}" if budget else ""), loss)


def best_help(student_BC: Tensor, teacher_BC: Tensor, cost_B: Tensor) -> Tensor:
    """(B,) the g in [0, 1] that minimises ``-sum_y t_y log(s_y + g) + cost g``, the limit of a trained helper network.

    The slope is zero where A(g) = sum_y t_y / (s_y + g) equals the cost. 1/A is concave, so Newton's steps on
    1/A = 1/cost approach from the left and need no bracket.
    """
    s_BC, t_BC = student_BC.softmax(1), teacher_BC.softmax(1)
    cost_B1 = cost_B[:, None].clamp(min=1e-12)
    g_B1 = (t_BC / cost_B1 - s_BC).amax(1, keepdim=True).clamp(0, 1)
    for _ in range(_NEWTON_STEPS):
        terms_BC = t_BC / (s_BC + g_B1)
        a_B1 = terms_BC.sum(1, keepdim=True)
        slope_B1 = (terms_BC / (s_BC + g_B1)).sum(1, keepdim=True) / a_B1**2
        g_B1 = (g_B1 + (1 / cost_B1 - 1 / a_B1) / slope_B1).clamp(0, 1)
    return g_B1[:, 0]


def _price_of_budget(student_BC: Tensor, teacher_BC: Tensor, ce_B: Tensor, price: float, budget: float) -> Tensor:
    """The lowest price, at most `price`, at which the best help stays within the budget; found by bisection."""
    low, high = ce_B.new_zeros(()), ce_B.new_tensor(price)
    if not budget:
        return high
    for _ in range(_PRICE_STEPS):
        middle = (low + high) / 2
        over = (best_help(student_BC, teacher_BC, middle * ce_B) * ce_B).mean() > budget
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return high
