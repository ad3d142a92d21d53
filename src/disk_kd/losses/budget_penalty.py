"""DiSK's penalty on help, as released. Legend: B batch, C classes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError, nearest
from disk_kd.support import at_least_float32, check_shapes

Against = Literal["teacher", "label"]


def budget_penalty(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    helper: Tensor,
    *,
    budget: float | Tensor,
    price: float | Tensor,
    max_ce: float,
    top_k: int,
    weight: float = 0.0,
    against: Against = "teacher",
) -> Tensor:
    """The price of help beyond its budget.

    Formula: ``lambda relu( (1/n) sum_i g_i min(CE_i, max_ce) - delta )``, and for `against="teacher"` also
    ``+ w mean_i log(1 + K g_i)``, where CE_i is the cross-entropy of the student, at temperature 1, against
    the teacher's first class or the label, and n >= 1 the number of labels in the batch that the student misses.

    The release's forms: CIFAR, `against="teacher"` with the w of `scaffolded_nll`, or `against="label"`;
    ImageNet, `against="teacher"` with w = 0.

    Args:
        student_logits: (B, C). Gradients flow into them; to train a helper alone, detach them first.
        teacher_logits: (B, C); no gradient flows into them.
        targets: (B,) int64 class indices.
        helper: (B,) g in [0, 1]. The range is not checked, because the host would wait for the device in each step.
        budget: delta, in nats; a number or a 0-dim tensor.
        price: lambda >= 0; a number or a 0-dim tensor.
        max_ce: the cap on CE_i, in nats, above 0.
        top_k: K, for the second term only.
        weight: w, the weight of the second term. `against="label"` has no second term.
        against: "teacher" or "label".

    Returns:
        A scalar. In float32 at least.

    Raises:
        ConfigError: shapes differ; `max_ce`, `top_k` or `against` is not valid.
        DataError: targets on the CPU lie outside the classes.

    Source: Kag, Acar, Gangrade, Saligrama, "Scaffolding a Student to Instill Knowledge", ICLR 2023,
    Budget(g), in the form of its released implementation.
    Departs: n is at least 1, where the release divides by zero.

    Example:
        >>> s, t, y, g = torch.randn(4, 9), torch.randn(4, 9), torch.arange(4), torch.full((4,), 0.5)
        >>> keywords = {"budget": 0.4, "price": 5.0, "max_ce": 5.0, "top_k": 3, "weight": 0.9}
        >>> penalty = budget_penalty(s, t, y, g, **keywords)
    """
    check_shapes(student_logits, teacher_logits, targets, helper)
    if not max_ce > 0:
        raise ConfigError(f"max_ce must be above 0, got {max_ce}; try 5.0")
    if top_k < 1:
        raise ConfigError(f"top_k must be at least 1, got {top_k}; raise top_k")
    logits_BC, helper_B = at_least_float32(student_logits), at_least_float32(helper)
    aim_B = _aim(teacher_logits, targets, against)
    ce_B = F.cross_entropy(logits_BC, aim_B, reduction="none").clamp(max=max_ce)
    missed = (logits_BC.argmax(1) != targets).sum().clamp(min=1)
    excess = torch.relu((helper_B * ce_B).sum() / missed - budget)
    penalty = price * excess
    return penalty + weight * torch.log1p(top_k * helper_B).mean() if against == "teacher" else penalty


def _aim(teacher_logits_BC: Tensor, targets_B: Tensor, against: Against) -> Tensor:
    """The classes of the student's cross-entropy, (B,)."""
    if against == "teacher":
        return teacher_logits_BC.argmax(1)
    if against == "label":
        return targets_B
    raise ConfigError(
        f"against must be 'teacher' or 'label', got {against!r}; {nearest(against, ['teacher', 'label'])}"
    )
