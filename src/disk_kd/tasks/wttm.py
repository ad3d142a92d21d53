"""Weighted transformed teacher matching."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.wttm import wttm_loss
from disk_kd.tasks.checks import positive
from disk_kd.tasks.logit_task import LogitTask


class WTTMTask(LogitTask):
    """Weighted transformed teacher matching: TTM with more weight on images for which the teacher is less certain.

    loss = ce_weight cross_entropy(s, y) + wttm_weight U(t) KL(softmax(t / T) || softmax(s))

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.
    `disk_kd.losses.wttm` has the formula. The default weights are a tenth of the paper's 1 and 3 for pairs of
    CIFAR-100, so that the loss has the size of KD's.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        temperature: Temperature of the teacher alone.
        ce_weight: Weight of the cross-entropy on the labels.
        wttm_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a temperature is not positive, or a weight is negative.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 10.0,
        ce_weight: float = 0.1,
        wttm_weight: float = 0.3,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="wttm",
            weight=wttm_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        self.terms: dict[str, Any] = {"temperature": positive("temperature", temperature)}

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C)."""
        return wttm_loss(student, teacher, **self.terms)
