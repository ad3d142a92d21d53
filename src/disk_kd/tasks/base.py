"""What every task of this project shares beyond timm's protocol."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.tasks.phase import Phase
from disk_kd.teacher import Teacher


class StudentTask(TrainingTask):
    """A `timm.task.TrainingTask` around one student, with or without a frozen teacher.

    A method derives from it and writes `forward`: `task(input, target, teacher=None) -> {"loss", "output",
    parts}`. Parts are detached 0-dim tensors for the log.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen. None: the method has no teacher.
        needs: teacher outputs that `forward` reads: any of "logits", "pooled", "map".
        phases: kinds of passes, in the order of one round.

    Raises:
        ModelError: teacher and student differ in their number of classes.
    """

    trainable_module: nn.Module
    teacher: Teacher | None
    steps_per_pass = 1
    """Calls in a pass over the data, which turns steps into passes for schedules; a loop that knows sets it."""
    top_logits = 0
    """How many of the teacher's largest logits it tells apart; stored outputs that keep fewer are refused."""
    micro_batches = 1
    """Calls in one step of the optimiser; a loop that accumulates gradients sets it."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        needs: frozenset[str] = frozenset(),
        phases: tuple[Phase, ...] = (Phase("student"),),
    ) -> None:
        super().__init__(device=next(student.parameters()).device, verbose=False)
        self.needs = needs
        self.phases = phases
        self.phase: str | None = None
        self.trainable_module = student
        self.teacher = None if teacher is None else Teacher.of(teacher, student, needs)

    @classmethod
    def with_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options of the constructor, with None replaced where the method then takes a fixed value.

        What a run's config holds: it repeats the run although a later version may choose other defaults.
        """
        return options

    @property
    def student(self) -> nn.Module:
        """The plain model: nothing of the method is needed to use or export it."""
        return unwrap_model(self.trainable_module)

    def set_phase(self, name: str | None) -> None:
        """Select what the coming passes train, and put that part alone into train mode.

        Args:
            name: a phase's name; None: everything at once, as in a plain loop.
        """
        self.phase = name
        self.train(self.training)

    def train(self, mode: bool = True) -> StudentTask:
        """Train mode for the parts that the phase trains, eval mode for the others."""
        super().train(mode)
        trained = {phase.module for phase in self.phases if self.phase in (None, phase.name)}
        for module in {phase.module for phase in self.phases} - trained:
            getattr(self, module).eval()
        return self

    def teach(self, input: Tensor, stored: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The teacher's outputs for a batch: the stored ones, or those of its forward pass.

        Raises:
            ConfigError: there are neither.
        """
        if stored is not None:
            return stored
        if self.teacher is None:
            raise ConfigError("the task has neither a teacher nor stored outputs of one; give one of them")
        return self.teacher(input)

    def compile(self, backend: str = "inductor", mode: str | None = None, **options: Any) -> nn.Module:  # type: ignore[override]
        """Compile the student's forward pass, as timm's tasks do; `student` stays the plain model.

        Args:
            backend, mode, options: as of `torch.compile`.
        """
        self.trainable_module = cast(
            nn.Module, torch.compile(self.trainable_module, backend=backend, mode=mode, **options)
        )
        return self.trainable_module
