"""Phases: what one pass over the data trains."""

from __future__ import annotations

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
        warmup_passes: passes of this phase alone, before the first round. The learning rate follows half a cosine in
            them, from its peak down; then the phase's own schedule begins, at the peak again.
        warmup_end: where that cosine ends, as a share of the peak; 1: the rate stays at the peak.
    """

    name: str
    module: str = "student"
    trains_student: bool = True
    passes: int = 1
    warmup_passes: int = 0
    warmup_end: float = 1.0


def plan_passes(phases: tuple[Phase, ...], student_passes: int) -> list[Phase]:
    """The whole run, one phase a pass, in order, until `student_passes` of them trained the student.

    The warm-up passes come first, then rounds. A round whose student passes are all done is done to its end; one
    that the budget cuts short ends with its last student pass.

    Raises:
        ConfigError: no phase trains the student, so that the budget would never be spent; or passes are negative.
    """
    for phase in phases:
        for name in ("passes", "warmup_passes"):
            if getattr(phase, name) < 0:
                raise ConfigError(f"{name} of the phase {phase.name} must be at least 0, not {getattr(phase, name)}")
    if not any(phase.trains_student and phase.passes > 0 for phase in phases):
        raise ConfigError("the method has no phase with passes that train the student")
    plan: list[Phase] = []
    coming = [phase for phase in phases for _ in range(phase.warmup_passes)]
    while student_passes > 0:
        student_ends = [end for end, phase in enumerate(coming, 1) if phase.trains_student]
        whole = len(student_ends) <= student_passes
        plan += coming if whole else coming[: student_ends[student_passes - 1]]
        student_passes -= len(student_ends)
        coming = [phase for phase in phases for _ in range(phase.passes)]
    return plan
