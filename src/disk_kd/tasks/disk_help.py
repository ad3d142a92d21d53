"""The exact helper of DiSK with its settings, applied to outputs that are there.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from disk_kd.helpers import Unit, exact_helper
from disk_kd.losses.standardise import standardise
from disk_kd.tasks.disk_settings import VARIANTS, DiSKSettings


@dataclass(frozen=True)
class ExactHelp:
    """The help g of `disk_kd.helpers.exact_helper`, whose keywords these are.

    Args:
        top_k, student_temperature, teacher_temperature, max_ce, price, unit, mass, outside_student: as of
            `exact_helper`.
        standardise: bring each row of logits to mean 0 and deviation 1 first; the price counts the plain ones.
    """

    top_k: int
    student_temperature: float
    teacher_temperature: float
    max_ce: float
    price: float = 0.0
    unit: Unit = "ce"
    mass: float = 1.0
    outside_student: bool = False
    standardise: bool = False

    @classmethod
    def from_settings(cls, settings: DiSKSettings) -> ExactHelp:
        """With the support, temperatures and cap of `settings`, at price 0."""
        return cls(settings.top_k, settings.student_temperature, settings.teacher_temperature, settings.max_ce)

    @property
    def name(self) -> str:
        """What computes the help."""
        return "the exact helper of DiSK"

    @property
    def settings(self) -> str:
        """The settings in words."""
        temperatures = f"{self.student_temperature:g} and {self.teacher_temperature:g}"
        return f"price {self.price:.4g}, top {self.top_k} classes, temperatures {temperatures} (student, teacher)"

    def __call__(self, student_BC: Tensor, teacher_BC: Tensor, targets_B: Tensor) -> Tensor:
        """g of each example, (B,), in [0, 1]."""
        logits = (student_BC, teacher_BC)
        if self.standardise:
            logits = (standardise(student_BC), standardise(teacher_BC))
        return exact_helper(
            *logits,
            targets_B,
            top_k=self.top_k,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            price=self.price,
            max_ce=self.max_ce,
            unit=self.unit,
            mass=self.mass,
            outside_student=self.outside_student,
            priced_logits=student_BC,
        )


def default_help(classes: int, price: float | None = None) -> ExactHelp:
    """What `inspect` ranks examples by where the method helps none: the normalised form's defaults.

    Args:
        classes: C, the largest `top_k`.
        price: of help; None: 0.
    """
    defaults = VARIANTS["normalised"]
    return ExactHelp(
        min(defaults.top_k, classes),
        defaults.student_temperature,
        defaults.teacher_temperature,
        defaults.max_ce,
        price=price or 0.0,
    )
