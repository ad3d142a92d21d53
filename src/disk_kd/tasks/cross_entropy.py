"""Cross-entropy on the labels: for teachers, and as the baseline without a teacher."""

from __future__ import annotations

from torch import Tensor, nn

from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction, non_negative


class CETask(StudentTask):
    """Supervised training with cross-entropy, without a teacher.

    loss = ce_weight mean_i cross_entropy(s(x_i), y_i), with label smoothing

    Args:
        student: the model to train.
        ce_weight: Weight of the cross-entropy on the labels. 0 trains with the hint alone.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: `label_smoothing` is outside [0, 1), or the weight is negative.
    """

    mixes = True
    unlabelled_use = "ce learns from labels alone; add a hint, which counts all images, or use kd"

    def __init__(self, student: nn.Module, *, ce_weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__(student)
        self.ce_weight = non_negative("ce_weight", ce_weight)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices.
            teacher: stored outputs for a hint, if there is one.

        Returns:
            `loss` (scalar), `output`, the student's logits (B, classes), and for the log `ce_loss`.
        """
        logits, hint_loss = self.student_outputs(input, target, self.teacher_outputs(input, teacher))
        ce = self.label_loss(logits, target, self.label_smoothing)
        return self.result(self.ce_weight * ce, logits, hint_loss, ce_loss=ce)
