"""Decoupled KD."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.losses.dkd import dkd_loss
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction, non_negative, positive


class DKDTask(StudentTask):
    """The teacher's word on the label and its word on the other classes, weighted apart.

    loss = ce_weight cross_entropy(s, y) + dkd_weight (alpha TCKD + beta NCKD)

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    `disk_kd.losses.dkd` has the formula.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        alpha: weight of the label's part.
        beta: weight of the other classes' part.
        temperature: of both models.
        ce_weight: weight of the cross-entropy on the labels.
        dkd_weight: weight of the distillation loss.
        warmup_passes: student passes over which that weight rises from 0.
        standardise: bring each row of logits to mean 0 and deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature that is not positive, or a negative weight.
        ModelError: teacher and student differ in their number of classes.
    """

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
        warmup_passes: float = 20.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(student, teacher, needs=frozenset({"logits"}))
        self.terms: dict[str, Any] = {
            "alpha": non_negative("alpha", alpha),
            "beta": non_negative("beta", beta),
            "temperature": positive("temperature", temperature),
        }
        self.ce_weight = non_negative("ce_weight", ce_weight)
        self.dkd_weight = non_negative("dkd_weight", dkd_weight)
        self.warmup_passes = non_negative("warmup_passes", warmup_passes)
        self.standardise = standardise
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices.
            teacher: stored outputs, `logits` (B, classes); the teacher runs when there are none.

        Returns:
            `loss`, `output` (the student's logits), and for the log `ce_loss` and `dkd_loss`.
        """
        teacher = self.teach(input, teacher)
        logits, hint_loss = self.look(input, target, teacher)
        pair = self.pair(logits, teacher["logits"])
        dkd = dkd_loss(*pair, target, **self.terms)
        ce = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
        loss = self.ce_weight * ce + self.ramp(self.warmup_passes) * self.dkd_weight * dkd
        return self.result(loss, logits, hint_loss, ce_loss=ce, dkd_loss=dkd)
