"""Optimiser and learning-rate schedule of one phase, both timm's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from disk_kd.errors import ConfigError
from disk_kd.tasks import Phase
from disk_kd.training.settings import TrainSettings

_SHAPED = {"momentum_buffer", "exp_avg", "exp_avg_sq"}
"""Parts of an optimiser's state that have their parameter's shape."""
_FUSED = {"momentum", "sgd", "nesterov", "adam", "adamw"}


def make_optimizer(module: nn.Module, settings: TrainSettings) -> Optimizer:
    """The optimiser that `settings` name, over the parameters of `module`, fused where torch has it so.

    Raises:
        ConfigError: a layer decay for a module that is no timm model; an optimiser that takes second derivatives, or
            needs a package or device that is not here.
    """
    if get_optimizer_info(settings.optimizer).second_order:
        raise ConfigError(f"train.optimizer {settings.optimizer} takes second derivatives; give another, as sgd")
    fused: dict[str, Any] = {"fused": True} if settings.optimizer in _FUSED else {}
    if settings.layer_decay is not None and not hasattr(module, "group_matcher"):
        raise ConfigError(
            f"train.layer_decay needs the layers of a timm model in order, {type(module).__name__} does not tell them; "
            "leave it out, or the hint or helper network beside the student"
        )
    try:
        optimizer = create_optimizer_v2(
            module,
            opt=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            filter_bias_and_bn=not settings.decay_norm_and_bias,
            layer_decay=settings.layer_decay,
            **fused,
        )
    except (AssertionError, ImportError, ValueError) as error:
        raise ConfigError(f"train.optimizer {settings.optimizer} cannot be used here: {error}; give another") from None
    if isinstance(optimizer, torch.optim.SGD) and settings.momentum:
        _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: Optimizer) -> None:
    """Momentum from zero, as torch's fused SGD does not begin where fp16's loss scaling skips the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put a saved state back, each tensor in the memory format of its parameter.

    A checkpoint holds plain row-major tensors; the fused kernels walk parameter and momentum side by side in memory.

    Raises:
        KeyError, TypeError, ValueError: it is no state of this optimiser.
    """
    begun = {parameter: values.keys() for parameter, values in optimizer.state.items()}
    optimizer.load_state_dict(state)
    if any(names - optimizer.state[parameter].keys() for parameter, names in begun.items()):
        raise KeyError("a part of the optimiser's state")
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if name in _SHAPED and (not isinstance(value, Tensor) or value.shape != parameter.shape):
                raise ValueError(f"{name} is not of its parameter's shape, {list(parameter.shape)}")
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_schedule(
    optimizer: Optimizer, settings: TrainSettings, phase: Phase, epochs: int, steps_per_epoch: int
) -> Callable[[int], None]:
    """What sets the learning rate of a phase before each of its updates.

    Args:
        optimizer: of the phase.
        settings: as of `make_scheduler`.
        phase: how many warm-up epochs it has, and where their rate ends.
        epochs: of the phase in the whole run, with its warm-up epochs.
        steps_per_epoch: optimiser steps in an epoch.

    Returns:
        A function of the update's number: below 0 in the warm-up epochs, from 0 on in the schedule that follows.
    """
    warmup = phase.warmup_epochs * steps_per_epoch
    scheduler = make_scheduler(optimizer, settings, epochs - phase.warmup_epochs, steps_per_epoch)

    def set_rate(update: int) -> None:
        if update >= 0:
            scheduler.step(update)
        else:
            left = (1 + math.cos(math.pi * (1 + update / warmup))) / 2
            scheduler.update_groups(settings.lr * (phase.warmup_end + (1 - phase.warmup_end) * left))

    return set_rate


def make_scheduler(optimizer: Optimizer, settings: TrainSettings, epochs: int, steps_per_epoch: int) -> Scheduler:
    """timm's schedule of that name, with warm-up: a function of the step alone.

    Args:
        optimizer: whose learning rate it sets.
        settings: kind, peak, warm-up, cycles or milestones, least learning rate and cooldown.
        epochs: length of all cycles and the cooldown together. A warm-up that is longer than half a cycle, or than
            half of multistep's and constant's epochs, is cut to that. The cooldown has the same share of these
            epochs as of `settings.epochs`, at most half.
        steps_per_epoch: optimiser steps in an epoch.
    """
    warmup_lr = settings.lr / 100 if settings.warmup_lr is None else settings.warmup_lr
    if settings.schedule in ("multistep", "constant"):
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=settings.schedule,
            num_epochs=epochs * steps_per_epoch,
            # timm decays one update before the milestone it is given.
            decay_milestones=[milestone * steps_per_epoch + 1 for milestone in settings.milestones],
            decay_rate=settings.decay,
            warmup_epochs=round(min(settings.warmup_epochs, epochs / 2) * steps_per_epoch),
            warmup_lr=warmup_lr,
            step_on_epochs=True,
        )
        return scheduler
    steps = epochs * steps_per_epoch
    cooldown = round(steps * min(settings.cooldown_epochs / settings.epochs, 0.5))
    cycle = max(1, math.ceil((steps - cooldown) / settings.cycles))
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="poly" if settings.schedule == "linear" else settings.schedule,
        decay_rate=1.0,  # of "poly" the power
        num_epochs=cycle,
        warmup_epochs=round(min(settings.warmup_epochs * steps_per_epoch, cycle / 2)),
        warmup_lr=warmup_lr,
        min_lr=settings.min_lr,
        cycle_limit=settings.cycles,
        cycle_decay=1.0,
        step_on_epochs=True,
    )
    return scheduler
