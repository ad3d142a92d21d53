"""How a run trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from timm.optim import list_optimizers

from disk_kd.errors import ConfigError, nearest
from disk_kd.options import environment

OF_SCHEDULES = ("milestones", "decay", "cycles", "cooldown_epochs", "min_lr")
"""Settings that belong to a schedule: another schedule that is named over a recipe has its own values of them."""


@dataclass(frozen=True)
class TrainSettings:
    """Length, optimiser, schedule and bookkeeping of a run.

    Args:
        epochs: student epochs over the training data; every method is counted in these.
        batch_size: images in one optimiser step, on all ranks together.
        accumulate: micro-batches that a step is computed in; it must divide `batch_size`.
        optimizer: a timm optimiser; "momentum" is plain SGD with momentum, "sgd" is Nesterov's.
        lr: peak learning rate.
        momentum: of the optimisers that have one.
        weight_decay: of the optimiser.
        decay_norm_and_bias: whether weight decay covers norms and biases too.
        layer_decay: factor on the learning rate from each layer of a timm model to the one before it; null: none.
        warmup_epochs: epochs of linear warm-up, part of the first cycle (or of all epochs), at most half of it.
        warmup_lr: learning rate at the beginning of the warm-up; null: a hundredth of `lr`.
        cooldown_epochs: epochs at `min_lr` at the end of cosine, tanh and linear, part of `epochs`; the cycles share
            the epochs before them. At most half of `epochs`. A phase that has more or fewer epochs than the student
            has as large a share.
        schedule: of the learning rate: cosine, tanh, linear (all down to `min_lr`), multistep, which is multiplied by
            `decay` at each milestone, or constant.
        cycles: cycles of the first three, each begun again from `lr`.
        milestones: student epochs after which multistep decays.
        decay: factor of multistep.
        min_lr: learning rate at a cycle's end.
        clip_grad: greatest norm of the gradient; null: unlimited.
        ema_decay: decay of a running average of the weights, which is then what is evaluated; null: none.
        ema_warmup: after t updates the decay is at most t / (t + 10), so that the average of a short run is of its last
            tenth and not of its start.
        precision: fp32, or autocast to bf16 or fp16 (with loss scaling).
        sync_batchnorm: batch norms over the batch of all ranks together, on GPUs; of no effect on one.
        grad_checkpointing: compute the student's activations twice instead of keeping them; its model must know how.
        channels_last: memory format of images and convolutions.
        compile: compile student and loss together with torch.compile; auto: if the run is long enough and the compiled
            step is measured to be faster. What was decided stands in the run's config.yaml.
        compile_mode: of torch.compile; reduce-overhead replays CUDA graphs, max-autotune searches for kernels too.
        seed: of the initial weights, the order of the data and its augmentation.
        device: cpu, cuda, cuda:1, mps; auto takes the accelerator when there is one.
        log_every: steps between two lines of metrics.
        evaluate_every: student epochs between two evaluations on the validation split.
        checkpoint_every_s: seconds between two checkpoints, which may fall anywhere in an epoch.
        logger: also send settings, metrics and summary to Weights & Biases (wandb; offline in the run directory unless
            you are logged in) or MLflow (mlflow; at MLFLOW_TRACKING_URI, else in RUN/mlflow.db); null: to neither.

    Raises:
        ConfigError: a value out of its range.
    """

    epochs: int = 30
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "momentum"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True
    layer_decay: float | None = None
    warmup_epochs: float = 0.0
    warmup_lr: float | None = None
    cooldown_epochs: float = 0.0
    schedule: Literal["cosine", "tanh", "linear", "multistep", "constant"] = "cosine"
    cycles: int = 1
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    min_lr: float = 0.0
    clip_grad: float | None = None
    ema_decay: float | None = None
    ema_warmup: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    sync_batchnorm: bool = False
    grad_checkpointing: bool = False
    channels_last: bool = True
    compile: Literal["auto"] | bool = environment("auto")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = environment(
        "default"
    )
    seed: int = 0
    device: str = environment("auto")
    log_every: int = environment(50)
    evaluate_every: int = 1
    checkpoint_every_s: float = environment(60.0)
    logger: Literal["wandb", "mlflow"] | None = environment(None)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "cycles", "log_every", "evaluate_every"):
            _at_least(name, getattr(self, name), 1)
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"train.{name} must be a whole number, not {getattr(self, name)}")
        if self.epochs > 1_000_000:
            raise ConfigError(f"train.epochs must be at most a million, not {self.epochs}")
        finite = ("momentum", "weight_decay", "warmup_epochs", "cooldown_epochs", "min_lr")
        for name in (*finite, "checkpoint_every_s", "seed"):
            _at_least(name, getattr(self, name), 0)
        for name in finite:
            if getattr(self, name) == math.inf:
                raise ConfigError(f"train.{name} must be finite, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"train.lr must be positive and finite, not {self.lr}")
        if self.min_lr > self.lr:
            raise ConfigError(f"train.min_lr must be at most train.lr, {self.lr}, not {self.min_lr}")
        if self.warmup_lr is not None and not 0 <= self.warmup_lr <= self.lr:
            raise ConfigError(f"train.warmup_lr must be from 0 to train.lr, {self.lr}, or null, not {self.warmup_lr}")
        if self.cooldown_epochs and self.schedule in ("multistep", "constant"):
            raise ConfigError(
                f"train.cooldown_epochs is of the schedules cosine, tanh and linear, not of {self.schedule}; give 0"
            )
        if not self.momentum < 1:
            raise ConfigError(f"train.momentum must be below 1, not {self.momentum}")
        if self.optimizer in ("sgd", "nesterov") and not self.momentum:
            raise ConfigError(
                f"train.optimizer {self.optimizer} is Nesterov's, which needs train.momentum above 0; give"
                " --train.optimizer momentum for plain SGD"
            )
        if self.milestones and self.schedule != "multistep":
            raise ConfigError(
                f"train.milestones are of the schedule multistep, not of {self.schedule}; give --train.schedule"
                " multistep, or --train.milestones '[]'"
            )
        if self.schedule == "multistep" and (not self.milestones or min(self.milestones) < 1):
            raise ConfigError(
                f"train.schedule multistep needs train.milestones, epochs from 1 on, not {list(self.milestones)}"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"train.layer_decay must be above 0 and at most 1, or null, not {self.layer_decay}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"train.decay must be above 0 and at most 1, not {self.decay}")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"train.accumulate {self.accumulate} must divide train.batch_size {self.batch_size}")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ConfigError(f"train.clip_grad must be positive or null, not {self.clip_grad}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay must be between 0 and 1 or null, not {self.ema_decay}")
        if self.seed >= 2**63:
            raise ConfigError(f"train.seed must be below 2^63, not {self.seed}")
        known = [str(name) for name in list_optimizers()]
        if self.optimizer not in known:
            raise ConfigError(f"unknown optimizer {self.optimizer!r}; {nearest(self.optimizer, known)}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"train.{name} must be at least {least}, not {value}")
