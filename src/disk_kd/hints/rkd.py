"""Relational KD: distances and angles between the images of a batch are the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from disk_kd.hints.base import Context, Hint, non_negative, one
from disk_kd.losses.rkd import rkd_loss


class RKDHint(Hint):
    """Relational KD: distances and angles between the images of a batch match the teacher's.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019. `disk_kd.losses.rkd` has the formula.

    Args:
        context: student and teacher.
        weight: Weight of the loss.
        distance_weight: Weight of the distances between two images.
        angle_weight: Weight of the angles between three images.
        student_layer: Name of the student's output. It is flattened.
        teacher_layer: Name of the teacher's output. It is flattened.

    Raises:
        ConfigError: a weight is negative.
        ModelError: a model has no such output.
    """

    least_batch = 3

    def __init__(
        self,
        context: Context,
        *,
        weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        student_layer: str = "pooled",
        teacher_layer: str = "pooled",
    ) -> None:
        super().__init__(weight, [student_layer], [teacher_layer])
        context.shapes(self.student, self.teacher)
        self.distance_weight = non_negative("distance_weight", distance_weight)
        self.angle_weight = non_negative("angle_weight", angle_weight)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        features = (one(student, self.student).flatten(1), one(teacher, self.teacher).flatten(1))
        return rkd_loss(*features, distance_weight=self.distance_weight, angle_weight=self.angle_weight)
