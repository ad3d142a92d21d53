"""Similarity preserving: images that the teacher finds alike, the student finds alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from disk_kd.hints.base import Context, Hint, one
from disk_kd.losses.similarity_preserving import similarity_preserving_loss


class SimilarityPreservingHint(Hint):
    """Similarity-preserving KD: similarities between the images of a batch match the teacher's.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
    `disk_kd.losses.similarity_preserving` has the formula.

    Args:
        context: student and teacher.
        weight: Weight of the loss.
        student_layer: Name of the student's output, of any shape.
        teacher_layer: Name of the teacher's output, of any shape.

    Raises:
        ModelError: a model has no such output.
    """

    least_batch = 2

    def __init__(
        self, context: Context, *, weight: float = 3000.0, student_layer: str = "last", teacher_layer: str = "last"
    ) -> None:
        super().__init__(weight, [student_layer], [teacher_layer])
        context.shapes(self.student, self.teacher)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        return similarity_preserving_loss(one(student, self.student), one(teacher, self.teacher))
