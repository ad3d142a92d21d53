"""What methods that compare logits share: labels, a warm-up, standardised logits, and the order of a step."""

from __future__ import annotations

from torch import Tensor, nn

from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction, non_negative


class LogitTask(StudentTask):
    """ce_weight cross_entropy(s, y) + weight distillation(s, t, y); a method writes `distillation`.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        name: of the method: its weight is named NAME_weight in messages, its loss NAME_loss in the log.
        weight: of the distillation loss.
        ce_weight: of the cross-entropy on the labels.
        warmup_epochs: student epochs over which `weight` rises from 0.
        standardise: bring each row of logits to mean 0 and deviation 1 before they are compared.
        label_smoothing: of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a negative weight or warm-up, or `label_smoothing` outside [0, 1).
        ModelError: teacher and student differ in their number of classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        name: str,
        weight: float,
        ce_weight: float,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(student, teacher, needs=frozenset({"logits"}))
        self.name = name
        self.weight = non_negative(f"{name}_weight", weight)
        self.ce_weight = non_negative("ce_weight", ce_weight)
        self.warmup_epochs = non_negative("warmup_epochs", warmup_epochs)
        self.standardise = standardise
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The method's loss, a scalar, of logits (B, C) and class indices (B,)."""
        raise NotImplementedError

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices.
            teacher: stored outputs, `logits` (B, classes); the teacher runs when there are none.

        Returns:
            `loss`, `output` (the student's logits), and for the log `ce_loss` and the method's own.
        """
        teacher = self.teacher_outputs(input, teacher)
        logits, hint_loss = self.student_outputs(input, target, teacher)
        own = self.distillation(*self.prepare_logits(logits, teacher["logits"]), target)
        ce = self.label_loss(logits, target, self.label_smoothing)
        loss = self.ce_weight * ce + self.ramp(self.warmup_epochs) * self.weight * own
        return self.result(loss, logits, hint_loss, **{"ce_loss": ce, f"{self.name}_loss": own})
