"""Decoupled KD."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.dkd import dkd_loss
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.logit_task import LogitTask


class DKDTask(LogitTask):
    """Decoupled KD: the label's part and the other classes' part of the divergence have separate weights.

    loss = ce_weight cross_entropy(s, y) + dkd_weight (alpha TCKD + beta NCKD)

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    `disk_kd.losses.dkd` has the formula.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        alpha: Weight of the label's part (TCKD).
        beta: Weight of the other classes' part (NCKD).
        temperature: Temperature of student and teacher.
        ce_weight: Weight of the cross-entropy on the labels.
        dkd_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature is not positive, or a weight is negative.
        ModelError: teacher and student differ in their number of classes.
    """

    unlabelled = False
    unlabelled_use = "dkd needs the label of each image; use kd, dist or disk"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        dkd_weight: float = 1.0,
        warmup_epochs: float = 20.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="dkd",
            weight=dkd_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        self.terms: dict[str, Any] = {
            "alpha": non_negative("alpha", alpha),
            "beta": non_negative("beta", beta),
            "temperature": positive("temperature", temperature),
        }

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        return dkd_loss(student, teacher, target, **self.terms)
