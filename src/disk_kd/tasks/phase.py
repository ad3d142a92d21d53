"""Phases: what one epoch over the data trains."""

from __future__ import annotations

from dataclasses import dataclass

from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """One kind of epoch over the training data.

    Args:
        name: `task.set_phase(name)` selects it.
        module: the submodule of the task whose parameters move; it alone is in train mode.
        trains_student: whether such an epoch counts against the run's budget of student epochs.
        epochs: epochs over the data in one round of all phases.
        warmup_epochs: epochs of this phase alone, before the first round. The learning rate follows half a cosine in
            them, from its peak down; then the phase's own schedule begins, at the peak again.
        warmup_end: where that cosine ends, as a share of the peak; 1: the rate stays at the peak.
    """

    name: str
    module: str = "student"
    trains_student: bool = True
    epochs: int = 1
    warmup_epochs: int = 0
    warmup_end: float = 1.0


def plan_epochs(phases: tuple[Phase, ...], student_epochs: int) -> list[Phase]:
    """The whole run, one phase an epoch, in order, until `student_epochs` of them trained the student.

    The warm-up epochs come first, then rounds. A round whose student epochs are all done is done to its end; one
    that the budget cuts short ends with its last student epoch.

    Raises:
        ConfigError: no phase trains the student, so that the budget would never be spent; or epochs are negative.
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
