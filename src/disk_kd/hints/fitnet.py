"""FitNet: the student's map, brought to the teacher's shape, imitates it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from disk_kd.hints.base import Context, Hint, one
from disk_kd.losses.fitnet import Regressor, fitnet_loss


class FitNetHint(Hint):
    """FitNets: a regressor brings the student's map to the shape of the teacher's map and imitates it.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. `disk_kd.losses.fitnet` has the formula.

    Args:
        context: student and teacher.
        weight: Weight of the loss.
        student_layer: Name of the student's feature map.
        teacher_layer: Name of the teacher's feature map.

    Raises:
        ModelError: a model has no such output, or the output is not a map.
    """

    def __init__(
        self, context: Context, *, weight: float = 100.0, student_layer: str = "map", teacher_layer: str = "map"
    ) -> None:
        super().__init__(weight, [student_layer], [teacher_layer])
        (student,), (teacher,) = context.shapes(self.student, self.teacher, maps=True)
        self.regressor = Regressor(student, teacher)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        return fitnet_loss(self.regressor(one(student, self.student)), one(teacher, self.teacher))
