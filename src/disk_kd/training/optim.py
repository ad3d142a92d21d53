"""timm's optimiser and learning-rate schedule of a phase."""

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
"""Entries of an optimiser's state with the shape of their parameter."""
_FUSED = {"momentum", "sgd", "nesterov", "adam", "adamw"}


def make_optimizer(module: nn.Module, settings: TrainSettings) -> Optimizer:
    """The optimiser of the settings for the parameters of `module`, fused if torch supports it.

    Raises:
        ConfigError: layer decay for a module that is not a timm model; or an optimiser that needs second derivatives,
            or a package or device that is missing.
    """
    if get_optimizer_info(settings.optimizer).second_order:
        raise ConfigError(f"train.optimizer {settings.optimizer} needs second derivatives; give another, such as sgd")
    fused: dict[str, Any] = {"fused": True} if settings.optimizer in _FUSED else {}
    if settings.layer_decay is not None and not hasattr(module, "group_matcher"):
        raise ConfigError(
            f"train.layer_decay needs the layers of a timm model in order, {type(module).__name__} does not give them; "
            "leave it out, or leave out the hint or the helper network"
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
    """Start momentum at zero. torch's fused SGD does not start there if fp16's loss scaling skips the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore a saved state, with each tensor in the memory format of its parameter.

    A checkpoint holds row-major tensors, but fused kernels need the same memory format for parameter and momentum.

    Raises:
        KeyError, TypeError, ValueError: it is not a state of this optimiser.
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
    """A function that sets the learning rate of a phase before each update.

    Args:
        optimizer: optimiser of the phase.
        settings: as for `make_scheduler`.
        phase: states the number of warm-up epochs and their final rate.
        epochs: number of epochs of the phase in the whole run, with its warm-up epochs.
        steps_per_epoch: number of optimiser steps in an epoch.

    Returns:
        A function of the update's number: below 0 in the warm-up epochs, from 0 on in the schedule after them.
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
    """timm's schedule of the settings, with warm-up, as a function of the step alone.

    Args:
        optimizer: optimiser whose learning rate it sets.
        settings: kind, peak, warm-up, cycles or milestones, minimum learning rate and cooldown.
        epochs: length of all cycles and the cooldown together. A warm-up longer than half a cycle (multistep and
            constant: half of the epochs) is shortened to that. The cooldown has the same fraction of these epochs as of
            `settings.epochs`, at most half.
        steps_per_epoch: number of optimiser steps in an epoch.
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
