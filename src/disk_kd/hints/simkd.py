"""SimKD: the student learns the teacher's last map through a projector, and takes over the teacher's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from disk_kd.errors import ModelError
from disk_kd.hints.base import Context, Hint
from disk_kd.losses.simkd import simkd_loss
from disk_kd.models.simkd import SimKDStudent


class SimKDHint(Hint):
    """SimKD: the student learns the teacher's last map through a projector and reuses the teacher's classifier.

    loss = mean squared difference of the projected map of the student and the teacher's last map

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022.

    The projector and the teacher's classifier replace the student's classifier, also at inference. The run's summary
    states their parameters and time. Without labels (method ce with ce_weight 0) it is SimKD; with method disk it is
    SimKD + DiSK.

    Args:
        context: student and teacher.
        weight: Weight of the loss.
        factor: Reduction of the projector's middle channels relative to the teacher's map.

    Raises:
        ModelError: the last output of a model is not a map, or the teacher's map is smaller than the projected map.
    """

    def __init__(self, context: Context, *, weight: float = 1.0, factor: int = 2) -> None:
        super().__init__(weight, ["projector"], ["last"])
        (ours,), (theirs,) = context.shapes(self.student, self.teacher, maps=True)
        if ours[1] > theirs[1] or ours[2] > theirs[2]:
            raise ModelError(
                f"SimKD needs a teacher whose last map is no smaller than the projected one, got {theirs} and {ours};"
                " give the teacher larger images (teacher.image_size)"
            )

    @classmethod
    def prepare(cls, student: nn.Module, teacher: nn.Module, options: Mapping[str, Any]) -> nn.Module:
        return SimKDStudent(student, teacher, factor=options.get("factor", 2))

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        return simkd_loss(student["projector"], teacher["last"])
