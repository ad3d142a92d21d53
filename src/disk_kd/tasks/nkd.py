"""Normalised KD."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.nkd import nkd_loss
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.logit_task import LogitTask


class NKDTask(LogitTask):
    """Normalised KD: the teacher's probability of the label, and the other classes normalised to 1.

    loss = ce_weight cross_entropy(s, y) + nkd_weight NKD

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023.
    `disk_kd.losses.nkd` has the formula.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        gamma: Weight of the other classes' part.
        temperature: Temperature of the other classes' part.
        ce_weight: Weight of the cross-entropy on the labels.
        nkd_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature is not positive, or a weight is negative.
        ModelError: teacher and student differ in their number of classes.
    """

    unlabelled = False
    unlabelled_use = "nkd needs the label of each image; use kd, dist or disk"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        gamma: float = 1.5,
        temperature: float = 1.0,
        ce_weight: float = 1.0,
        nkd_weight: float = 1.0,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="nkd",
            weight=nkd_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        self.terms: dict[str, Any] = {
            "gamma": non_negative("gamma", gamma),
            "temperature": positive("temperature", temperature),
        }

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        return nkd_loss(student, teacher, target, **self.terms)
