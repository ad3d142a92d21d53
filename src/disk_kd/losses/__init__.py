"""Losses: tensors in, a scalar out; one published loss a file."""

from __future__ import annotations

from disk_kd.losses.budget_penalty import BudgetPenalty, budget_penalty
from disk_kd.losses.kd import KDLoss, kd_loss
from disk_kd.losses.scaffolded_kl import ScaffoldedKL, scaffolded_kl
from disk_kd.losses.scaffolded_nll import ScaffoldedNLL, scaffolded_nll

__all__ = [
    "BudgetPenalty",
    "KDLoss",
    "ScaffoldedKL",
    "ScaffoldedNLL",
    "budget_penalty",
    "kd_loss",
    "scaffolded_kl",
    "scaffolded_nll",
]
