"""Phases: which part of a task an epoch trains."""

from __future__ import annotations

from dataclasses import dataclass

from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """One kind of epoch over the training data.

    Args:
        name: `task.set_phase(name)` selects it.
        module: the name of the submodule of the task that trains. Only this one is in train mode.
        trains_student: whether its epochs train the student. If so, they count as student epochs of the run.
        epochs: number of epochs in one round of all phases.
        warmup_epochs: number of epochs of this phase alone, before the first round. The learning rate then follows half
            a cosine, from its peak down. After them the phase's own schedule begins at the peak.
        warmup_end: end of that cosine, as a fraction of the peak; 1: the rate stays at the peak.
    """

    name: str
    module: str = "student"
    trains_student: bool = True
    epochs: int = 1
    warmup_epochs: int = 0
    warmup_end: float = 1.0


def plan_epochs(phases: tuple[Phase, ...], student_epochs: int) -> list[Phase]:
    """The phase of each epoch of a run, in order, with `student_epochs` epochs that train the student.

    The warm-up epochs come first, then rounds. The last round ends with its last student epoch if `student_epochs` cuts
    it short. Otherwise it runs to its end.

    Raises:
        ConfigError: no phase trains the student, or a number of epochs is negative.
    """
    for phase in phases:
        for name in ("epochs", "warmup_epochs"):
            if getattr(phase, name) < 0:
                raise ConfigError(f"{name} of the phase {phase.name} must be at least 0, not {getattr(phase, name)}")
    if not any(phase.trains_student and phase.epochs > 0 for phase in phases):
        raise ConfigError("the method has no phase with epochs that train the student")
    plan: list[Phase] = []
    coming = [phase for phase in phases for _ in range(phase.warmup_epochs)]
    while student_epochs > 0:
        student_ends = [end for end, phase in enumerate(coming, 1) if phase.trains_student]
        whole = len(student_ends) <= student_epochs
        plan += coming if whole else coming[: student_ends[student_epochs - 1]]
        student_epochs -= len(student_ends)
        coming = [phase for phase in phases for _ in range(phase.epochs)]
    return plan
