"""Variational information distillation: the student's maps tell what the teacher's maps are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from disk_kd.hints.base import Context, Hint, all_stages
from disk_kd.losses.vid import VariationalInformation


class VIDHint(Hint):
    """VID: the student's maps predict the teacher's maps, stage by stage, as Gaussians with learned variances.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019.
    The sum over stages of the loss of `disk_kd.losses.vid`.

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
        weight: float = 1.0,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
    ) -> None:
        super().__init__(weight, *all_stages(context, student_layers, teacher_layers))
        shapes = zip(*context.shapes(self.student, self.teacher, maps=True), strict=True)
        self.information = nn.ModuleList(VariationalInformation(student, teacher) for student, teacher in shapes)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        pairs = zip(self.information, self.student, self.teacher, strict=True)
        return torch.stack([term(student[ours], teacher[theirs]) for term, ours, theirs in pairs]).sum()
