"""The protocol of methods that help single examples, for `disk-kd inspect` and the report.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


class ExampleHelp(Protocol):
    """Computes the help of each example from outputs of student and teacher."""

    @property
    def name(self) -> str:
        """What computes it, such as "the exact helper of DiSK"."""
        ...

    @property
    def settings(self) -> str:
        """Its settings in words."""
        ...

    def __call__(self, student_BC: Tensor, teacher_BC: Tensor, targets_B: Tensor) -> Tensor:
        """The help of each example, (B,), at least 0.

        Args:
            student_BC: logits of the student.
            teacher_BC: logits of the teacher.
            targets_B: class indices.
        """
        ...


@runtime_checkable
class HelpsExamples(Protocol):
    """A task that helps single examples. Its class is recognised by the method `example_help`."""

    def example_help(self, logged: Mapping[str, float], price: float | None = None) -> ExampleHelp:
        """The help that the method gives with the models of a run.

        Args:
            logged: the numbers at the end of the run, as summary.json has them under "end".
            price: a price of help in the place of the run's; None: the run's.
        """
        ...
