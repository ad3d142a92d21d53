"""Our contestants: a run of `disk-kd distill`, epoch by epoch."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from timm.utils import unwrap_model
from torch import nn

from disk_kd.build import build_task, recorded_in_files, train_loader
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.devices import place
from disk_kd.storing import decide_store, open_store
from disk_kd.tasks import plan_epochs
from disk_kd.training import Meter, TrainStep, compile_where_it_pays, make_optimizer
from disk_kd.training.optim import load_optimizer, make_schedule
from disk_kd.training.state import load_task_state, task_state

_QUIET = Console(quiet=True)


class OurTraining:
    """The parts of a run, built as in `disk_kd.run`: teacher outputs stored, step compiled if it pays.

    Args:
        config: configuration of the run.
        dataset: dataset of the run.
        device: device of the training.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device) -> None:
        config = recorded_in_files(config)
        torch.manual_seed(config.train.seed)
        self.task = build_task(config, dataset, device)
        self.plan = plan_epochs(self.task.phases, config.train.epochs)
        train = place(dataset.train, device)
        views = max(map(self.plan.count, self.plan))
        config = decide_store(config, self.task, train, views, _QUIET)
        self.loader = train_loader(config, self.task, train)
        self.task.steps_per_epoch = steps = self.loader.steps_per_epoch
        self.step = TrainStep(self.task, config.train, open_store(config, self.task, train, _QUIET))
        compile_where_it_pays(
            self.step, self.loader, list(dict.fromkeys(self.plan)), len(self.plan) * steps, lambda text: None
        )
        phases = {phase.name: phase for phase in self.plan}
        self.modules = {name: unwrap_model(getattr(self.task, phase.module)) for name, phase in phases.items()}
        self.optimizers = {name: make_optimizer(module, config.train) for name, module in self.modules.items()}
        self.schedules = {
            name: make_schedule(optimizer, config.train, phases[name], self.plan.count(phases[name]), steps)
            for name, optimizer in self.optimizers.items()
        }
        self.updates = {name: -phase.warmup_epochs * steps for name, phase in phases.items()}
        self.epochs = 0
        self.task.train()

    @property
    def student(self) -> nn.Module:
        """The plain model."""
        return unwrap_model(self.task.student)

    def epoch(self, number: int) -> int:
        """All epochs up to the end of the student's next epoch."""
        meter, images = Meter(), 0
        for phase in self.plan[self.epochs :]:
            self.task.set_phase(phase.name)
            view = self.plan[: self.epochs].count(phase)
            for batch in self.loader.batches(self.epochs, view=view):
                self.schedules[phase.name](self.updates[phase.name])
                meter.add(self.step(batch, self.optimizers[phase.name], self.modules[phase.name]))
                self.updates[phase.name] += 1
                images += phase.trains_student * len(batch.targets)
            meter.means()
            self.epochs += 1
            if phase.trains_student:
                break
        return images

    def state(self) -> dict[str, Any]:
        """Task, optimisers and position."""
        return {
            "task": task_state(self.task),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "updates": self.updates,
            "epochs": self.epochs,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        load_task_state(self.task, state["task"])
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][name])
        self.updates, self.epochs = state["updates"], state["epochs"]

    def close(self) -> None:
        """Does nothing: there are no other processes."""
