"""How long a run takes here, measured on a few of its own steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from timm.utils import unwrap_model
from torch import Tensor

from disk_kd.build import build_task, check_weights, load_data, recorded_in_files, train_loader
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Batch, Dataset, Loader, Split
from disk_kd.devices import inference_batch, pick_device, place
from disk_kd.tasks import StudentTask, plan_epochs
from disk_kd.training import TrainStep, make_optimizer
from disk_kd.training.checkpoint import seed_all

Precision = Literal["fp32", "bf16", "fp16"]
MEASURED_S = 1.0
"""Seconds of each measurement, without its first steps."""
_WARM_STEPS = 2
_BEGUN_WITH = 4
"""Batches that a method sees which looks at the training data before it begins."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run, built but not begun.

    Attributes:
        config: of the run.
        device: of the run.
        dataset: of the run.
        train: the training split, on the device if it fits there.
        task: the method, with student and teacher.
    """

    config: RunConfig
    device: torch.device
    dataset: Dataset
    train: AnySplit
    task: StudentTask

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset | None = None) -> Parts:
        """Load the data and build the models.

        Raises:
            DiskKDError: the input is not valid.
        """
        config = recorded_in_files(config)
        check_weights(config)
        device = pick_device(config.train.device)
        dataset = dataset or load_data(config.data)
        seed_all(config.train.seed)
        task = build_task(config, dataset, device)
        parts = cls(config, device, dataset, place(dataset.train, device), task)
        task.set_clock(parts.loader().steps_per_epoch, config.train.accumulate)
        return parts

    def loader(self, **changes: Any) -> Loader:
        """Training batches."""
        return train_loader(self.config, self.task, self.train, **changes)

    def begin(self) -> None:
        """Let the method look at a few training images, if it does so before training."""
        batches = self.loader(batch_size=inference_batch(self.device), drop_last=False, mix=None).batches(0)
        self.task.begin((batch.images, batch.targets, {}) for batch in islice(batches, _BEGUN_WITH))


class OneBatchStored:
    """Stored teacher outputs that are the same for every batch: reading them takes as long as reading any.

    Args:
        parts: of the run, with a teacher.
    """

    def __init__(self, parts: Parts) -> None:
        assert parts.task.teacher is not None
        batch = next(parts.loader().batches(0))
        self._outputs: dict[str, Tensor] = parts.task.teacher(batch.images)

    def read(self, ids: Tensor, view: int, device: torch.device) -> dict[str, Tensor]:
        """The outputs for as many samples as there are ids."""
        return {name: output[: len(ids)] for name, output in self._outputs.items()}


def epoch_seconds(config: RunConfig) -> float:
    """Seconds of training in a student epoch, with the teacher in each step if there is one.

    Raises:
        DiskKDError: the input is not valid.
    """
    parts = Parts.of(config)
    parts.begin()
    return training_s(parts)


def training_s(parts: Parts, store: OneBatchStored | None = None, precision: Precision | None = None) -> float:
    """Seconds of training in a student epoch, with the epochs of other phases that belong to it.

    Args:
        parts: of the run. The steps change its student.
        store: in the place of the teacher.
        precision: of the student; None: that of the run.
    """
    settings = replace(parts.config.train, compile=False)
    if precision is not None:
        settings = replace(settings, precision=precision)
    step, loader = TrainStep(parts.task, settings, store), parts.loader()
    plan = plan_epochs(parts.task.phases, settings.epochs)
    total = 0.0
    for phase in dict.fromkeys(plan):
        parts.task.train()
        parts.task.set_phase(phase.name)
        module = unwrap_model(getattr(parts.task, phase.module))
        optimizer = make_optimizer(module, settings)
        each_s = _per_batch_s(loader, partial(step, optimizer=optimizer, module=module), parts)
        total += plan.count(phase) * loader.steps_per_epoch * each_s
    parts.task.set_phase(None)
    return total / settings.epochs


def teacher_view_s(parts: Parts) -> float:
    """Seconds in which the teacher gives its outputs for one view of all training samples."""
    assert parts.task.teacher is not None
    loader = parts.loader(batch_size=inference_batch(parts.device), shuffle=False, drop_last=False, mix=None)
    teacher = parts.task.teacher
    return loader.steps_per_epoch * _per_batch_s(loader, lambda batch: teacher(batch.images), parts)


def validation_s(parts: Parts) -> float:
    """Seconds of one validation of the student; 0 without a validation split."""
    split = parts.dataset.validation
    if split is None:
        return 0.0
    options: dict[str, Any] = {"augment": None, "mix": None, "shuffle": False, "drop_last": False}
    loader = train_loader(parts.config, parts.task, split, batch_size=inference_batch(parts.device), **options)
    student = parts.task.student.eval()
    with torch.inference_mode():
        each_s = _per_batch_s(loader, lambda batch: student(batch.images), parts)
    parts.task.train()
    return loader.steps_per_epoch * each_s


def _per_batch_s(loader: Loader, work: Callable[[Batch], object], parts: Parts) -> float:
    """Mean seconds of a batch, its loading included: over whole epochs if they are short."""
    for batch in islice(loader.batches(0), _WARM_STEPS):
        work(batch)
    _synchronise(parts.device)
    in_memory = isinstance(parts.train, Split)
    batches, count = _endless(loader), 0
    if not in_memory:  # the first batch waits for the processes that decode
        work(next(batches))
    start = time.perf_counter()
    while True:
        work(next(batches))
        count += 1
        _synchronise(parts.device)
        spent = time.perf_counter() - start
        whole = not in_memory or count % loader.steps_per_epoch == 0
        if spent >= MEASURED_S and (whole or count < loader.steps_per_epoch):
            return spent / count


def _endless(loader: Loader) -> Iterator[Batch]:
    """The batches of one epoch after another."""
    epoch = 1
    while True:
        yield from loader.batches(epoch)
        epoch += 1


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
