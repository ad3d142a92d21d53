"""One step of training: forward, backward, update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from disk_kd import ranks
from disk_kd.data import Batch
from disk_kd.support import UNLABELLED
from disk_kd.tasks import StudentTask
from disk_kd.training.settings import TrainSettings

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Store(Protocol):
    """Stored teacher outputs by sample and view."""

    def read(self, ids: Tensor, view: int, device: torch.device) -> dict[str, Tensor]:
        """The outputs of these samples under this view."""


class TrainStep:
    """A training step on one batch, with the task's precision and stored teacher outputs.

    Student, loss and logged values are one function of tensors, so that they compile together.

    Args:
        task: the task to train.
        settings: precision, accumulation, clipping, compilation ("auto" counts as false; see `compile_where_it_pays`).
        store: stored teacher outputs; None: the teacher runs in each step.
    """

    def __init__(self, task: StudentTask, settings: TrainSettings, store: Store | None = None) -> None:
        self.task, self.settings, self.store = task, settings, store
        dtype = _AUTOCAST[settings.precision]
        self._autocast = torch.autocast(task.device.type, dtype=dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=settings.precision == "fp16")
        self._forward = self._eager
        self.compiled = False
        if settings.compile is True:
            self.compile()

    def __call__(self, batch: Batch, optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
        """Run one optimiser step.

        Args:
            batch: batch of the loader.
            optimizer: optimiser of the phase.
            module: module that the phase trains. Its gradients are clipped.

        Returns:
            The loss, its parts and top-1 on the batch, in percent (for mixed images the label with the larger share
            counts): detached 0-dim tensors.
        """
        measured = self.gradients(batch)
        if self.settings.clip_grad is not None:
            self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.settings.clip_grad)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        return measured

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of a batch, in micro-batches. Returns the same as `__call__`."""
        self.task.set_labelled_share(1 - batch.unlabelled / (len(batch.targets) * ranks.size()))
        total: dict[str, Tensor] = {}
        left = self.settings.accumulate
        for part in micro_batches(batch, left):
            left -= 1
            share = len(part.targets) / len(batch.targets)
            outputs = {} if self.store is None else self.store.read(part.ids, part.view, self.task.device)
            if self.task.needs_ids:
                outputs = {**outputs, "ids": part.ids}
            if self.compiled:
                torch.compiler.cudagraph_mark_step_begin()
            # Gradients are summed over the ranks once per step, with its last micro-batch.
            with self.task.no_sync() if left else nullcontext():
                with self._autocast:
                    loss, measured = self._forward(part.images, part.targets, outputs)
                self.scaler.scale(loss * share).backward()
            if share == 1:
                return measured
            total = {name: total.get(name, 0.0) + share * value for name, value in measured.items()}
        return total

    def compile(self) -> None:
        """Compile student and loss together. Compilation runs at the first step."""
        # Sizes are fixed, and one graph per size is faster than one for all sizes.
        options: dict[str, Any] = {"dynamic": False, "mode": self.settings.compile_mode}
        self._forward = torch.compile(self._eager, **options)
        self.compiled = True

    def run_eagerly(self) -> None:
        """Undo `compile`."""
        self._forward = self._eager
        self.compiled = False

    def _eager(self, images: Tensor, targets: Tensor, outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        result = self.task(images, targets, outputs)
        return result["loss"], measures(result, targets, partly_labelled=self.task.labelled_share is not None)


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch split into `parts` parts of nearly equal size."""
    for images, targets, ids in zip(*(field.tensor_split(parts) for field in batch[:3]), strict=True):
        yield Batch(images, targets, ids, batch.view)


def measures(result: Mapping[str, Tensor], targets: Tensor, *, partly_labelled: bool = False) -> dict[str, Tensor]:
    """The logged values of a step: the loss, its parts, and top-1 on the batch in percent.

    With `partly_labelled` it also has "labelled", the percentage of images with a label. "top1" is then the percentage
    of images that have a label and are classified right; their ratio is the accuracy on the labelled images.
    """
    scalars = {name: value.detach().float() for name, value in result.items() if value.ndim == 0}
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    scalars["top1"] = (result["output"].argmax(1) == labels).float().mean() * 100
    if partly_labelled:
        scalars["labelled"] = (targets != UNLABELLED).float().mean() * 100
    # Stacking copies them: a compiled function that returns the loss twice would lose its gradient.
    return dict(zip(scalars, torch.stack(list(scalars.values())).unbind(), strict=True))
