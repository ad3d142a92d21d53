"""Streamlined knowledge distillation."""

from __future__ import annotations

import sys
from typing import Any

from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.logits import class_count
from disk_kd.losses.skd import skd_loss
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.logit_task import LogitTask


class SKDTask(LogitTask):
    """Streamlined KD: the teacher's predictions, and the angles between the logits of a batch's images.

    loss = ce_weight cross_entropy(s, y) + skd_weight (instance_weight KD + direction_weight DIRECTION)

    Source: Jeong et al., "Streamlined Knowledge Distillation", CVPR 2026.
    `disk_kd.losses.skd` has the formula.

    The angles need all logits. A store with only the K largest logits is refused.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        instance_weight: Weight of the predictions of each image.
        direction_weight: Weight of the angles between images.
        temperature: Temperature of student and teacher for the predictions.
        tikhonov: Number added to the diagonal of the covariance that whitens the differences of the angles.
        ce_weight: Weight of the cross-entropy on the labels.
        skd_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature or `tikhonov` that is not positive, or a negative weight.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        instance_weight: float = 1.0,
        direction_weight: float = 1.0,
        temperature: float = 4.0,
        tikhonov: float = 0.1,
        ce_weight: float = 0.1,
        skd_weight: float = 0.9,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="skd",
            weight=skd_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        self.terms: dict[str, Any] = {
            "instance_weight": non_negative("instance_weight", instance_weight),
            "direction_weight": non_negative("direction_weight", direction_weight),
            "temperature": positive("temperature", temperature),
            "tikhonov": positive("tikhonov", tikhonov),
        }
        if direction_weight:
            self.top_logits = class_count(unwrap_model(student)) or sys.maxsize

    @property
    def least_batch(self) -> int:
        """The fewest images at a time that the loss can learn from."""
        return max(2 if self.terms["direction_weight"] > 0 else 1, super().least_batch)

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        return skd_loss(student, teacher, **self.terms)
