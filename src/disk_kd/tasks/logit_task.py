"""What methods that compare logits share: labels, a warm-up, standardised logits, and the order of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from disk_kd.support import UNLABELLED, log_probabilities
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction, non_negative, share


class LogitTask(StudentTask):
    """ce_weight cross_entropy(s, y) + weight distillation(s, t, y); a method writes `distillation`.

    With a confidence (`count_confident`), distillation is (|K| / B) distillation(s_K, t_K, y_K) in a batch of B images.
    K holds the images with a label, and those without one for which max_c softmax(t)_c is at least the confidence. It
    is 0 if K is smaller than the method's minimum batch. For a loss that is a mean over images this is the sum over K
    divided by B, so parts of a batch add up to the batch, and the teacher counts less where it is less certain. Source:
    Sohn et al., "FixMatch", NeurIPS 2020, equation 4.

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

    confidence = 0.0
    """Least probability of the teacher's first class for an image without a label to count in `distillation`."""

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

    def count_confident(self, confidence: float) -> None:
        """Leave unlabelled images out of the teacher's part for which the teacher's first class is improbable.

        Args:
            confidence: least probability of the teacher's first class, at temperature 1; 0 counts all images.

        Raises:
            ConfigError: it is no probability.
        """
        self.confidence = share("confidence", confidence)

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
        own, parts = self.teacher_part(logits, teacher["logits"], target)
        ce = self.label_loss(logits, target, self.label_smoothing)
        loss = self.ce_weight * ce + self.ramp(self.warmup_epochs) * self.weight * own
        return self.result(loss, logits, hint_loss, **{"ce_loss": ce, f"{self.name}_loss": own}, **parts)

    def teacher_part(self, logits: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation loss; with a confidence also, for the log, the share of images that count in it."""
        if not self.confidence or target.is_floating_point():
            return self.distillation(*self.prepare_logits(logits, teacher), target), {}
        counts = (target != UNLABELLED) | confident(teacher, self.confidence)
        return self._of_counted(logits, teacher, target, counts), {"counted": counts.float().mean()}

    @torch.compiler.disable
    def _of_counted(self, logits: Tensor, teacher: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        """The distillation loss of some images, times their share. Their number is another one in each batch."""
        if int(counts.sum()) < self.least_batch:
            return 0 * logits.float().sum()
        own = self.distillation(*self.prepare_logits(logits[counts], teacher[counts]), target[counts])
        return counts.float().mean() * own


def confident(teacher_logits_BC: Tensor, confidence: float) -> Tensor:
    """(B,) bool: whether the probability of the teacher's first class is at least `confidence`."""
    return log_probabilities(teacher_logits_BC.detach(), 1.0).amax(1).exp() >= confidence
