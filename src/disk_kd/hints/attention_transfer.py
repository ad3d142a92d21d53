"""Attention transfer: where the student looks, stage by stage, is where the teacher looks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from disk_kd.hints.base import Context, Hint, all_stages
from disk_kd.losses.attention_transfer import attention_transfer_loss


class AttentionTransferHint(Hint):
    """Attention transfer: the student's activation maps learn where the teacher's maps are active, stage by stage.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.
    `disk_kd.losses.attention_transfer` has the formula.

    Args:
        context: student and teacher.
        weight: Weight of the loss.
        student_layers: Names of the student's feature maps. null takes all stages.
        teacher_layers: Names of the teacher's feature maps, one for each of the student's. null takes all stages.

    Raises:
        ConfigError: student and teacher have different numbers of outputs.
        ModelError: a model has no such output, or the output is not a map.
    """

    def __init__(
        self,
        context: Context,
        *,
        weight: float = 1000.0,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
    ) -> None:
        super().__init__(weight, *all_stages(context, student_layers, teacher_layers))
        context.shapes(self.student, self.teacher, maps=True)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        ours = [student[name] for name in self.student]
        return attention_transfer_loss(ours, [teacher[name] for name in self.teacher])
