"""Distillation by a bounded divergence."""

from __future__ import annotations

from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.losses import jensen_shannon_loss
from disk_kd.tasks.checks import positive, share
from disk_kd.tasks.logit_task import LogitTask


class JensenShannonTask(LogitTask):
    """Jensen-Shannon divergence to the teacher. It is bounded, so images that the student cannot fit count little.

    loss = ce_weight cross_entropy(s, y) + jsd_weight jensen_shannon_loss(s, t)

    It is the control experiment for DiSK: a helper also bounds the loss, so DiSK must do better than a bounded loss.

    Source: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024; `disk_kd.losses.jensen_shannon`
    has the formula.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        skew: Skew between the two directions, above 0 and below 1. It tends to KD at 0 and to the reverse divergence at
            1.
        temperature: Temperature of student and teacher.
        jsd_weight: Weight of the divergence.
        ce_weight: Weight of the cross-entropy on the labels.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a skew or temperature out of range, or a negative weight.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        skew: float = 0.5,
        temperature: float = 2.0,
        jsd_weight: float = 0.9,
        ce_weight: float = 0.1,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="jsd",
            weight=jsd_weight,
            ce_weight=ce_weight,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        if skew in (0, 1):
            raise ConfigError(f"skew must be above 0 and below 1, not {skew}; kd with reverse {skew} is that limit")
        self.skew = share("skew", skew)
        self.temperature = positive("temperature", temperature)

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        temperatures = {"student_temperature": self.temperature, "teacher_temperature": self.temperature}
        return jensen_shannon_loss(student, teacher, skew=self.skew, **temperatures)
