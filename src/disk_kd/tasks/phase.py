"""Phases: what one pass over the data trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """One kind of pass over the training data.

    Args:
        name: `task.set_phase(name)` selects it.
        module: the submodule of the task whose parameters move; it alone is in train mode.
        trains_student: whether such a pass counts against the run's budget of student passes.
        passes: passes over the data in one round of all phases.
        warmup_passes: passes of this phase alone, before the first round.
    """

    name: str
    module: str = "student"
    trains_student: bool = True
    passes: int = 1
    warmup_passes: int = 0


def plan_passes(phases: tuple[Phase, ...], student_passes: int) -> list[Phase]:
    """The whole run, one phase a pass, in order, until `student_passes` of them trained the student.

    A round that the budget cuts short ends with its last student pass: a helper that no student pass
    follows would be trained for nothing.

    Raises:
        ConfigError: no phase trains the student, so that the budget would never be spent.
    """
    if not any(phase.trains_student and phase.passes > 0 for phase in phases):
        raise ConfigError("the method has no phase with passes that train the student")
    return list(_passes(phases, student_passes))


def _passes(phases: tuple[Phase, ...], left: int) -> Iterator[Phase]:
    first = [phase for phase in phases for _ in range(phase.warmup_passes)]
    each = [phase for phase in phases for _ in range(phase.passes)]
    while left > 0:
        for phase in first + each:
            if left <= 0:
                return
            yield phase
            left -= phase.trains_student
        first = []
