"""Generalised cross-entropy against the teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.gce import check_power, gce_loss
from disk_kd.tasks.checks import positive
from disk_kd.tasks.logit_task import LogitTask


class GCETask(LogitTask):
    """Generalised cross-entropy with the teacher's probabilities. It is bounded, so very unlikely classes count little.

    loss = ce_weight cross_entropy(s, y) + gce_weight GCE(s, t)

    Source: Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    NeurIPS 2018, with the teacher's probabilities in the place of the label. `disk_kd.losses.gce` has the formula. No
    paper has the method; the defaults are those of `kd`, and a power that did well here.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        power: Power q, above 0 and at most 1. It tends to KD as q tends to 0.
        temperature: Temperature of student and teacher.
        ce_weight: Weight of the cross-entropy on the labels.
        gce_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a power or temperature out of range, or a negative weight.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        power: float = 0.3,
        temperature: float = 2.0,
        ce_weight: float = 0.1,
        gce_weight: float = 0.9,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="gce",
            weight=gce_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        check_power(power)
        self.terms: dict[str, Any] = {"power": power, "temperature": positive("temperature", temperature)}

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C)."""
        return gce_loss(student, teacher, **self.terms)
