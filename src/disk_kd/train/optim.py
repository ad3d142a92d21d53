"""Optimiser and learning-rate schedule of one phase, both timm's."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from disk_kd.train.settings import TrainSettings

_FUSED = {"momentum", "sgd", "nesterov", "adam", "adamw"}


def make_optimizer(module: nn.Module, settings: TrainSettings) -> Optimizer:
    """The optimiser that `settings` name, over the parameters of `module`, fused where torch has it so."""
    fused: dict[str, Any] = {"fused": True} if settings.optimizer in _FUSED else {}
    return create_optimizer_v2(
        module,
        opt=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        filter_bias_and_bn=not settings.decay_norm_and_bias,
        **fused,
    )


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put a saved state back, each tensor in the memory format of its parameter.

    A checkpoint holds plain row-major tensors; the fused kernels walk parameter and momentum side by side in memory.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_scheduler(optimizer: Optimizer, settings: TrainSettings, passes: int, steps_per_pass: int) -> Scheduler:
    """Cosine cycles or steps down, with warm-up: a function of the step alone.

    Args:
        optimizer: whose learning rate it sets.
        settings: kind, peak, warm-up, cycles or milestones, and least learning rate.
        passes: length of all cycles together. A warm-up that is longer than half a cycle is cut to that.
        steps_per_pass: optimiser steps in a pass.
    """
    if settings.schedule == "multistep":
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="multistep",
            num_epochs=passes * steps_per_pass,
            # timm decays one update before the milestone it is given.
            decay_milestones=[milestone * steps_per_pass + 1 for milestone in settings.milestones],
            decay_rate=settings.decay,
            warmup_epochs=round(settings.warmup_passes * steps_per_pass),
            warmup_lr=settings.lr / 100,
            step_on_epochs=True,
        )
        return scheduler
    cycle = max(1, math.ceil(passes * steps_per_pass / settings.cycles))
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=cycle,
        warmup_epochs=round(min(settings.warmup_passes * steps_per_pass, cycle / 2)),
        warmup_lr=settings.lr / 100,
        min_lr=settings.min_lr,
        cycle_limit=settings.cycles,
        cycle_decay=1.0,
        step_on_epochs=True,
    )
    return scheduler
