"""Distillation by the alpha-beta-divergence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from disk_kd.losses.abkd import abkd_loss, check_powers
from disk_kd.tasks.checks import positive
from disk_kd.tasks.logit_task import LogitTask


class ABKDTask(LogitTask):
    """The student nears the teacher in a divergence between KL, reverse KL and the squared distance.

    loss = ce_weight cross_entropy(s, y) + abkd_weight D_alpha_beta(t || s)

    Source: Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence", ICML 2025. `disk_kd.losses.abkd` has the formula. The defaults are those of the release for
    resnet56 to resnet20 on CIFAR-100.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        alpha: 1 and beta 0 is KD; a smaller one weighs large errors more.
        beta: a larger one weighs classes more of which the student is sure.
        temperature: of both models.
        ce_weight: weight of the cross-entropy on the labels.
        abkd_weight: weight of the distillation loss.
        warmup_epochs: student epochs over which that weight rises from 0.
        standardise: bring each row of logits to mean 0 and deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: of the cross-entropy, in [0, 1).

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
