"""Distillation by the alpha-beta-divergence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.abkd import abkd_loss, check_powers
from disk_kd.tasks.checks import positive
from disk_kd.tasks.logit_task import LogitTask


class ABKDTask(LogitTask):
    """ABKD: a divergence family between KL, reverse KL and the squared distance.

    loss = ce_weight cross_entropy(s, y) + abkd_weight D_alpha_beta(t || s)

    Source: Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence", ICML 2025. `disk_kd.losses.abkd` has the formula. The defaults are those of the release for
    resnet56 to resnet20 on CIFAR-100.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        alpha: Power alpha; alpha 1 with beta 0 is KD. A smaller alpha gives more weight to large errors.
        beta: Power beta. A larger beta gives more weight to classes for which the student is certain.
        temperature: Temperature of student and teacher.
        ce_weight: Weight of the cross-entropy on the labels.
        abkd_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: alpha and beta that are no powers, a temperature that is not positive, or a negative weight.
        ModelError: teacher and student differ in their number of classes.
    """

    mixes = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.8,
        beta: float = 0.3,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        abkd_weight: float = 2.0,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="abkd",
            weight=abkd_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        check_powers(alpha, beta)
        self.terms: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "temperature": positive("temperature", temperature),
        }

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C)."""
        return abkd_loss(student, teacher, **self.terms)
