"""Settings of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from timm.optim import list_optimizers

from disk_kd.errors import ConfigError, nearest
from disk_kd.options import environment

OF_SCHEDULES = ("milestones", "decay", "cycles", "cooldown_epochs", "min_lr")
"""Settings of the learning-rate schedule. A different schedule does not take them over from the recipe."""


@dataclass(frozen=True)
class TrainSettings:
    """Length, optimiser, schedule and logging of a run.

    Args:
        epochs: Number of student epochs over the training data. All methods count their length in student epochs.
        batch_size: Number of images in an optimiser step, summed over all ranks.
        accumulate: Number of micro-batches in an optimiser step (gradient accumulation). It must divide `batch_size`.
        optimizer: Name of a timm optimiser. In timm "momentum" is SGD with momentum and "sgd" is SGD with Nesterov
            momentum.
        lr: Peak learning rate.
        momentum: Momentum, for optimisers that have one.
        weight_decay: Weight decay of the optimiser.
        decay_norm_and_bias: Apply weight decay to normalisation layers and biases too.
        layer_decay: Layer-wise learning-rate decay: each layer of a timm model has this factor times the rate of the
            layer after it. null turns it off.
        warmup_epochs: Number of epochs of linear warm-up. They count towards `epochs` and are at most half of the first
            cycle.
        warmup_lr: Learning rate at the start of the warm-up. null takes `lr` / 100.
        cooldown_epochs: Number of epochs at `min_lr` at the end of the cosine, tanh and linear schedules. They are part
            of `epochs` and at most half of them; the cycles share the epochs before. A phase with another number of
            epochs has the same fraction of them.
        schedule: Learning-rate schedule. cosine, tanh and linear fall to `min_lr`; multistep multiplies the rate by
            `decay` at each milestone.
        cycles: Number of cycles of the cosine, tanh or linear schedule. Each cycle starts at `lr` again.
        milestones: Student epochs after which multistep lowers the learning rate.
        decay: Factor on the learning rate at each milestone of multistep.
        min_lr: Learning rate at the end of a cycle.
        clip_grad: Maximum norm of the gradient. null turns clipping off.
        ema_decay: Decay of an exponential moving average (EMA) of the weights. The average is then evaluated and saved
            as the student. null turns it off.
        ema_warmup: Limit the EMA decay to t / (t + 10) after t updates. The average of a short run then covers its last
            tenth instead of its start.
        class_weights: Weight of each class in the cross-entropy on the labels: inverse is 1 / n for n labelled images,
            effective is (1 - beta) / (1 - beta^n); both are scaled to mean 1 over the classes.
        class_weights_beta: beta of the effective class weights, in [0, 1). Closer to 1 weighs rare classes more.
        logit_adjustment: Strength tau of logit adjustment: tau log(n / N) of each class is added to the logits in the
            cross-entropy on the labels. 0 turns it off; 1 is the usual value.
        select_by: Accuracy on the validation split that chooses the checkpoint: top1, or balanced (the mean over
            classes).
        precision: Precision of training: fp32, or autocast to bf16 or fp16 (fp16 with loss scaling).
        sync_batchnorm: Synchronise batch normalisation over all ranks, on GPUs. It has no effect on one rank.
        grad_checkpointing: Recompute the student's activations in the backward pass to save memory. The model must
            support it.
        channels_last: Use the channels_last memory format for images and convolutions.
        compile: Compile student and loss with torch.compile. auto compiles if the run is long enough and a measurement
            shows that the compiled step is faster. The run's config.yaml records the decision.
        compile_mode: Mode of torch.compile. reduce-overhead uses CUDA graphs; max-autotune also searches for fast
            kernels.
        quantise: int8 trains the last epochs with fake quantisation: weights and activations are rounded as an int8
            file rounds them, and batch norms are frozen. `disk-kd export --quantise int8` then uses the learned
            ranges. null turns it off.
        quantise_epochs: Number of student epochs at the end with fake quantisation. null takes 20 % of them.
        seed: Random seed of the initial weights, the data order and the augmentation.
        device: Device: cpu, cuda, cuda:1 or mps. auto takes the accelerator if there is one.
        log_every: Number of steps between two logged lines of metrics.
        evaluate_every: Number of student epochs between two evaluations on the validation split.
        checkpoint_every_s: Seconds between two checkpoints. A checkpoint can fall in the middle of an epoch.
        logger: Also log settings, metrics and summary to wandb (Weights & Biases; offline in the run directory unless
            you are logged in) or mlflow (at MLFLOW_TRACKING_URI, else in RUN/mlflow.db). null logs to neither.

    Raises:
        ConfigError: a value is out of range.
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
    class_weights: Literal["none", "inverse", "effective"] = "none"
    class_weights_beta: float = 0.999
    logit_adjustment: float = 0.0
    select_by: Literal["top1", "balanced"] = "top1"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    sync_batchnorm: bool = False
    grad_checkpointing: bool = False
    channels_last: bool = True
    compile: Literal["auto"] | bool = environment("auto")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = environment(
        "default"
    )
    quantise: Literal["int8"] | None = None
    quantise_epochs: int | None = None
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
                f"train.cooldown_epochs needs the schedule cosine, tanh or linear, not {self.schedule}; give 0"
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
                f"train.milestones need the schedule multistep, not {self.schedule}; give --train.schedule"
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
        if not 0 <= self.class_weights_beta < 1:
            raise ConfigError(f"train.class_weights_beta must be in [0, 1), not {self.class_weights_beta}; try 0.999")
        if not 0 <= self.logit_adjustment < math.inf:
            raise ConfigError(f"train.logit_adjustment must be at least 0 and finite, not {self.logit_adjustment}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay must be between 0 and 1 or null, not {self.ema_decay}")
        self._check_quantisation()
        if self.seed >= 2**63:
            raise ConfigError(f"train.seed must be below 2^63, not {self.seed}")
        known = [str(name) for name in list_optimizers()]
        if self.optimizer not in known:
            raise ConfigError(f"unknown optimizer {self.optimizer!r}; {nearest(self.optimizer, known)}")

    def _check_quantisation(self) -> None:
        if self.quantise is None:
            if self.quantise_epochs is not None:
                raise ConfigError("train.quantise_epochs needs train.quantise; give --train.quantise int8 too")
            return
        if self.quantise_epochs is not None and not 1 <= self.quantise_epochs <= self.epochs:
            raise ConfigError(
                f"train.quantise_epochs must be from 1 to train.epochs, {self.epochs}, not {self.quantise_epochs}"
            )
        for name in ("compile", "grad_checkpointing"):
            if getattr(self, name) is True:
                raise ConfigError(f"train.quantise does not support train.{name}; give --train.{name} false")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"train.{name} must be at least {least}, not {value}")
