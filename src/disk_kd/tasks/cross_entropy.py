"""Cross-entropy on the labels: for teachers, and as the baseline without a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction


class CETask(StudentTask):
    """Plain supervised training.

    loss = mean_i cross_entropy(s(x_i), y_i), with label smoothing

    Args:
        student: the model to train.
        label_smoothing: mass moved from the label to the uniform distribution, in [0, 1).

    Raises:
        ConfigError: `label_smoothing` is outside [0, 1).
    """

    def __init__(self, student: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__(student)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices.
            teacher: ignored.

        Returns:
            `loss` (scalar) and `output`, the student's logits (B, classes).
        """
        logits = self.trainable_module(input)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
        return {"loss": loss, "output": logits}
