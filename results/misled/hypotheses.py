"""Methods whose teacher is wrong on purpose for a share of the images.

Run from this folder: disk-kd distill RECIPE --method hypotheses:MisledKD --method.misled 0.3 ...
Legend: B batch, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.support import log_probabilities
from disk_kd.tasks import DiSKTask, DISTTask, KDTask
from disk_kd.tasks.gce import GCETask


def mislead(teacher: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """For a fixed share of the images, the teacher's logits moved on by one to 99 classes: wrong, and sure of it."""
    logits_BC, ids_B = teacher["logits"], teacher["ids"]
    draw_B = (ids_B * 2654435761) % 2**32
    shift_B = torch.where(draw_B < share * 2**32, 1 + draw_B % (logits_BC.shape[1] - 1), 0)
    columns_BC = (torch.arange(logits_BC.shape[1], device=ids_B.device) + shift_B[:, None]) % logits_BC.shape[1]
    return {**teacher, "logits": logits_BC.gather(1, columns_BC)}


class Misled:
    """A method whose teacher is wrong on purpose for a share of the images."""

    needs_ids = True

    def __init__(self, student: nn.Module, teacher: nn.Module, *, misled: float = 0.2, **options: Any) -> None:
        super().__init__(student, teacher, **options)  # type: ignore[call-arg]
        self.misled = misled

    def teacher_outputs(self, input: Tensor, stored: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The teacher's outputs, misled."""
        return mislead(super().teacher_outputs(input, stored), self.misled)  # type: ignore[misc]


class MisledKD(Misled, KDTask):
    """KD so misled."""


class MisledDiSK(Misled, DiSKTask):
    """DiSK so misled."""


class MisledDIST(Misled, DISTTask):
    """DIST so misled."""


class MisledGCE(Misled, GCETask):
    """Generalised cross-entropy so misled."""


class MisledMaskedKD(Misled, KDTask):
    """KD so misled, of the images alone where the teacher's first class is the label: a control that needs no help."""

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        log_s_BC = log_probabilities(student, self.student_temperature)
        log_t_BC = log_probabilities(teacher.detach(), self.teacher_temperature)
        divergence_B = (log_t_BC.exp() * (log_t_BC - log_s_BC)).sum(1)
        right_B = teacher.argmax(1) == target
        return self.student_temperature * self.teacher_temperature * (divergence_B * right_B).mean()
