"""DIST."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.dist import dist_loss
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.logit_task import LogitTask


class DISTTask(LogitTask):
    """DIST: the student correlates with the teacher within each image and within each class, instead of matching it.

    loss = ce_weight cross_entropy(s, y) + dist_weight (inter_weight INTER + intra_weight INTRA)

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
    `disk_kd.losses.dist` has the formula.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        inter_weight: Weight of the correlation over the classes of an image.
        intra_weight: Weight of the correlation over the images of a class.
        temperature: Temperature of student and teacher.
        ce_weight: Weight of the cross-entropy on the labels.
        dist_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature is not positive, or a weight is negative.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

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
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="dist",
            weight=dist_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        self.terms: dict[str, Any] = {
            "inter_weight": non_negative("inter_weight", inter_weight),
            "intra_weight": non_negative("intra_weight", intra_weight),
            "temperature": positive("temperature", temperature),
        }

    @property
    def least_batch(self) -> int:
        """The fewest images at a time that the loss can learn from."""
        return max(3 if self.terms["intra_weight"] > 0 else 1, super().least_batch)

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        return dist_loss(student, teacher, **self.terms)
