"""Multi-level logit distillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.losses.mlkd import mlkd_loss
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.logit_task import LogitTask


class MLKDTask(LogitTask):
    """Multi-level logit distillation: predictions of each image, relations among images, relations among classes.

    loss = ce_weight cross_entropy(s, y) + mlkd_weight sum_T (instance_weight KD_T + batch_weight BATCH_T
    + class_weight CLASS_T)

    Source: Jin et al., "Multi-Level Logit Distillation", CVPR 2023.
    `disk_kd.losses.mlkd` has the formula, and what of the release it leaves out.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        instance_weight: Weight of the predictions of each image.
        batch_weight: Weight of the relations among the images of a batch.
        class_weight: Weight of the relations among classes.
        temperatures: Temperatures of student and teacher. The loss is summed over them.
        ce_weight: Weight of the cross-entropy on the labels.
        mlkd_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: no temperature, one that is not positive, or a negative weight.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        instance_weight: float = 1.0,
        batch_weight: float = 1.0,
        class_weight: float = 1.0,
        temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
        ce_weight: float = 0.1,
        mlkd_weight: float = 0.9,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="mlkd",
            weight=mlkd_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        if not temperatures:
            raise ConfigError("temperatures must hold at least one number, got none; try [2, 3, 4, 5, 6]")
        self.terms: dict[str, Any] = {
            "instance_weight": non_negative("instance_weight", instance_weight),
            "batch_weight": non_negative("batch_weight", batch_weight),
            "class_weight": non_negative("class_weight", class_weight),
            "temperatures": [positive("each of the temperatures", temperature) for temperature in temperatures],
        }

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        return mlkd_loss(student, teacher, **self.terms)
