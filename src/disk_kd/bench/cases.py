"""Our benchmark cases: an epoch of each method, and its lower bound."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.bench.measure import Case
from disk_kd.bench.workbench import Workbench
from disk_kd.data import Batch
from disk_kd.helpers import exact_helper
from disk_kd.tasks import CETask, DiSKTask, KDTask, StudentTask
from disk_kd.teacher import TeacherStore
from disk_kd.training import Meter, TrainStep, make_optimizer

Run = Callable[[], int]
LOGITS = frozenset({"logits"})


def bound(bench: Workbench) -> Run:
    """Forward and backward pass of the student on one fixed batch: eager, contiguous, float32, no data, no update."""
    student, batch, steps = bench.student(channels_last=False), fixed_batch(bench), bench.loader.steps_per_epoch
    images = batch.images.contiguous()

    def run() -> int:
        for _ in range(steps):
            F.cross_entropy(student(images), batch.targets).backward()
            student.zero_grad()
        return steps * len(images)

    return run


def ceiling(bench: Workbench) -> Run:
    """The same passes as our loop runs them: channels_last, compiled, in the precision of the settings."""
    task, batch, steps = CETask(bench.student()), fixed_batch(bench), bench.loader.steps_per_epoch
    step = TrainStep(task, bench.train)

    def run() -> int:
        for _ in range(steps):
            step.gradients(batch)
            task.zero_grad()
        return steps * len(batch.targets)

    return run


def epochs(bench: Workbench, task: StudentTask, store: TeacherStore | None = None, steps: int | None = None) -> Run:
    """One epoch of each phase of a task, as in the training loop.

    Args:
        bench: the workbench with loader and settings.
        task: the task to train.
        store: stored teacher outputs; None: the teacher runs in each step.
        steps: maximum number of steps of an epoch; None: all.
    """
    step, meter, numbers = TrainStep(task, bench.train, store=store), Meter(), itertools.count()
    modules = {phase: getattr(task, phase.module) for phase in task.phases}
    optimizers = {phase: make_optimizer(module, bench.train) for phase, module in modules.items()}
    task.train()

    def run() -> int:
        images = 0
        for phase in task.phases:
            task.set_phase(phase.name)
            for batch in itertools.islice(bench.loader.batches(next(numbers)), steps):
                meter.add(step(batch, optimizers[phase], modules[phase]))
                images += phase.trains_student * len(batch.targets)
            meter.means()
        return images

    return run


def ce(bench: Workbench, **options: Any) -> Run:
    """Cross-entropy."""
    return epochs(bench, CETask(bench.student()), **options)


def kd(bench: Workbench, teacher: str, stored: bool, **options: Any) -> Run:
    """KD, with a stored teacher or one that runs in each step."""
    task = KDTask(bench.student(), bench.teacher(teacher))
    return epochs(bench, task, bench.store(teacher, LOGITS) if stored else None, **options)


def disk(bench: Workbench, teacher: str, stored: bool, **options: Any) -> Run:
    """DiSK with the exact helper, with a stored teacher or one that runs in each step."""
    task = DiSKTask(bench.student(), bench.teacher(teacher))
    return epochs(bench, task, bench.store(teacher, LOGITS) if stored else None, **options)


def disk_network(bench: Workbench, teacher: str) -> Run:
    """DiSK with a helper network: an epoch of the student and an epoch of the helper, with a stored teacher."""
    task = DiSKTask(bench.student(), bench.teacher(teacher), helper="teacher-map")
    return epochs(bench, task, bench.store(teacher, task.needs))


def teacher_alone(bench: Workbench, teacher: str) -> Run:
    """The teacher's forward pass on one fixed batch, as our loop runs it."""
    forward, batch = compiled(bench, bench.teacher(teacher)), fixed_batch(bench)
    return repeated(lambda: forward(batch.images), bench)


def helper_alone(bench: Workbench) -> Run:
    """The exact helper on random logits, as our loop runs it."""
    size, classes = bench.settings.batch_size, bench.settings.classes
    student, teacher = (torch.randn(size, classes, device=bench.device) for _ in range(2))
    targets, price = fixed_batch(bench).targets, torch.tensor(0.1, device=bench.device)
    heat: dict[str, Any] = {"student_temperature": 2.0, "teacher_temperature": 2.0}
    solve = compiled(bench, partial(exact_helper, top_k=min(10, classes), max_ce=5.0, **heat))
    return repeated(lambda: solve(student, teacher, targets, price=price), bench)


def store_view(bench: Workbench, teacher: str) -> Run:
    """Building a teacher store. One image under one view counts as one image."""

    def run() -> int:
        folder = Path(mkdtemp(dir=bench.folder))
        bench.stored(folder, teacher)
        shutil.rmtree(folder)
        return bench.views * bench.settings.samples

    return run


ALONE: dict[str, tuple[str, Callable[..., Run]]] = {
    "bound": ("the bound: student, eager, one fixed batch", bound),
    "bound_kept": ("the same, in a process that keeps its memory", bound),
    "ceiling": ("student as we run it, one fixed batch", ceiling),
    "ce": ("CE", ce),
    "helper": ("exact helper alone", helper_alone),
}
"""Title and function of the cases without a teacher."""

TAUGHT: dict[str, tuple[str, Callable[..., Run]]] = {
    "kd_stored": ("KD, stored teacher", partial(kd, stored=True)),
    "disk_stored": ("DiSK, exact helper, stored teacher", partial(disk, stored=True)),
    "disk_network": ("DiSK, helper network, stored teacher", disk_network),
    "kd_online": ("KD, online teacher", partial(kd, stored=False)),
    "disk_online": ("DiSK, exact helper, online teacher", partial(disk, stored=False)),
    "teacher": ("teacher alone, one fixed batch", teacher_alone),
    "store": ("storing one view", store_view),
}
"""Title and function of the cases that depend on the teacher."""


def make_case(bench: Workbench, key: str, teacher: str) -> Case:
    """The case with that key. `teacher` is used if the case needs it."""
    if key in ALONE:
        title, make = ALONE[key]
        return Case(key, title, make(bench))
    title, make = TAUGHT[key]
    return Case(key, title, make(bench, teacher), teacher)


def our_cases(bench: Workbench) -> list[Case]:
    """All our cases except the bound, which runs in a plain process. Cases with a teacher run for each teacher."""
    teachers = bench.settings.teachers
    alone = [make_case(bench, key, teachers[0]) for key in ALONE if key != "bound"]
    return alone + [make_case(bench, key, teacher) for teacher in teachers for key in TAUGHT]


def fixed_batch(bench: Workbench) -> Batch:
    """The first batch of the loader."""
    return next(bench.loader.batches(0))


def repeated(call: Callable[[], object], bench: Workbench) -> Run:
    """As many calls as an epoch has steps."""
    steps = bench.loader.steps_per_epoch

    def run() -> int:
        for _ in range(steps):
            call()
        return steps * bench.settings.batch_size

    return run


def compiled(bench: Workbench, function: Callable[..., Any]) -> Callable[..., Tensor | dict[str, Tensor]]:
    """The function, compiled like a training step if the settings say so."""
    if not bench.settings.compile:
        return function
    return torch.compile(function, dynamic=False, mode=bench.settings.compile_mode)
