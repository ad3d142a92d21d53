"""DIST."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.losses.dist import dist_loss
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction, non_negative, positive


class DISTTask(StudentTask):
    """Correlations with the teacher, within an image and within a class, instead of equality.

    loss = ce_weight cross_entropy(s, y) + dist_weight (inter_weight INTER + intra_weight INTRA)

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
    `disk_kd.losses.dist` has the formula.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        inter_weight: weight of the correlation over the classes of an image.
        intra_weight: weight of the correlation over the images of a class.
        temperature: of both models.
        ce_weight: weight of the cross-entropy on the labels.
        dist_weight: weight of the distillation loss.
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
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        dist_weight: float = 1.0,
        warmup_passes: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(student, teacher, needs=frozenset({"logits"}))
        self.terms: dict[str, Any] = {
            "inter_weight": non_negative("inter_weight", inter_weight),
            "intra_weight": non_negative("intra_weight", intra_weight),
            "temperature": positive("temperature", temperature),
        }
        self.ce_weight = non_negative("ce_weight", ce_weight)
        self.dist_weight = non_negative("dist_weight", dist_weight)
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
            `loss`, `output` (the student's logits), and for the log `ce_loss` and `dist_loss`.
        """
        teacher = self.teach(input, teacher)
        logits, hint_loss = self.look(input, target, teacher)
        pair = self.pair(logits, teacher["logits"])
        dist = dist_loss(*pair, **self.terms)
        ce = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
        loss = self.ce_weight * ce + self.ramp(self.warmup_passes) * self.dist_weight * dist
        return self.result(loss, logits, hint_loss, ce_loss=ce, dist_loss=dist)
