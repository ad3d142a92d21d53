"""Knowledge distillation as Hinton et al. gave it."""

from __future__ import annotations

from torch import Tensor, nn

from disk_kd.losses import kd_loss
from disk_kd.tasks.checks import positive, share
from disk_kd.tasks.logit_task import LogitTask


class KDTask(LogitTask):
    """Knowledge distillation: the student matches the teacher's softened probabilities.

    loss = ce_weight cross_entropy(s, y) + kd_weight T_s T_t KL(softmax(t / T_t) || softmax(s / T_s))

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        temperature: Temperature T_s of the student; also the teacher's, unless `teacher_temperature` is given.
        teacher_temperature: Temperature T_t of the teacher. null takes `temperature`.
        kd_weight: Weight of the divergence.
        ce_weight: Weight of the cross-entropy on the labels.
        reverse: Share of the divergence in the reverse direction, KL(student || teacher), from 0 to 1.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., "Logit
            Standardization in Knowledge Distillation", CVPR 2024, who then use temperature 2 and weight 9).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature is not positive, a weight is negative, or `reverse` is outside [0, 1].
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 2.0,
        teacher_temperature: float | None = None,
        kd_weight: float = 0.9,
        ce_weight: float = 0.1,
        reverse: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="kd",
            weight=kd_weight,
            ce_weight=ce_weight,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        if teacher_temperature is None:
            teacher_temperature = temperature
        self.reverse = share("reverse", reverse)
        self.student_temperature = positive("temperature", temperature)
        self.teacher_temperature = positive("teacher_temperature", teacher_temperature)

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        return kd_loss(
            student,
            teacher,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            reverse=self.reverse,
        )
