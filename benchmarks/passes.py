"""What a student pass costs, as ratios in one run: make bench.

Every case trains the same student on the same made images, in the same process. The repetitions of all cases are
interleaved, so that a slow moment of the machine falls on all of them, and the median counts. The bound is forward
and backward on one fixed batch: no data, no loss but cross-entropy, no teacher.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.task import LogitDistillationTask
from torch import nn

from disk_kd import CETask, DiSKTask, KDTask
from disk_kd.data import Augment, Batch, Loader, Split
from disk_kd.helpers import exact_helper
from disk_kd.teacher import Teacher, TeacherStore

CLASSES = 100
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def made_split(samples: int, size: int, device: torch.device) -> Split:
    """Noise in the shape of CIFAR-100."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, 3, size, size), dtype=torch.uint8, generator=generator)
    targets = torch.randint(CLASSES, (samples,), generator=generator)
    return Split(images, targets, tuple(f"class{n:02d}" for n in range(CLASSES)), torch.arange(samples)).to(device)


def model(name: str, device: torch.device) -> nn.Module:
    """A model as the loop holds it."""
    return timm.create_model(name, num_classes=CLASSES).to(device).to(memory_format=torch.channels_last)


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, fused=True)


def pass_of(
    task: nn.Module, student: nn.Module, loader: Loader, store: TeacherStore | None = None
) -> Callable[[], int]:
    """One pass of training, as a call that returns the images it trained on."""
    optimizer, passes = optimizer_of(student), itertools.count()

    def run() -> int:
        images = 0
        for batch in loader.batches(next(passes)):
            stored = {} if store is None else {"teacher": store.read(batch.ids, batch.view, batch.images.device)}
            task(batch.images, batch.targets, **stored)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            images += len(batch.targets)
        return images

    return run


def bound(student: nn.Module, batch: Batch, steps: int) -> Callable[[], int]:
    """Forward and backward on one fixed batch."""

    def run() -> int:
        for _ in range(steps):
            F.cross_entropy(student(batch.images), batch.targets).backward()
            student.zero_grad()
        return steps * len(batch.targets)

    return run


def teacher_alone(teacher: Teacher, batch: Batch, steps: int) -> Callable[[], int]:
    """The teacher's forward pass on one fixed batch."""
    return lambda: [teacher(batch.images) for _ in range(steps)] and steps * len(batch.targets)


def helper_alone(batch: Batch, steps: int) -> Callable[[], int]:
    """The exact helper on random logits of one batch."""
    student, teacher = (torch.randn(len(batch.targets), CLASSES, device=batch.images.device) for _ in range(2))
    terms = {"top_k": 10, "student_temperature": 2.0, "teacher_temperature": 2.0, "price": 0.1, "max_ce": 5.0}
    return lambda: (
        [exact_helper(student, teacher, batch.targets, **terms) for _ in range(steps)] and steps * len(student)
    )


def cases(options: argparse.Namespace, device: torch.device, folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """The things compared, by name."""
    loader = Loader(
        made_split(options.samples, options.size, device), batch_size=options.batch_size, **NORMAL, views=2,
        augment=Augment(crop_padding=4, flip=True, cutout=8), channels_last=True,
    )  # fmt: skip
    teacher = model(options.teacher, device)
    batch, steps = next(loader.batches(0)), loader.steps_per_pass

    def student() -> nn.Module:
        torch.manual_seed(0)
        return model(options.student, device).train()

    plain = Loader(loader.split, batch_size=500, **NORMAL, views=2, shuffle=False, drop_last=False, channels_last=True)
    frozen = Teacher.of(teacher, student())
    store = TeacherStore.build(folder, frozen, plain, views=2, samples=options.samples, manifest={})
    store.preload(device)

    yield "bound: student, one fixed batch", bound(student(), batch, steps)
    s = student()
    yield "CE", pass_of(CETask(s), s, loader)
    s = student()
    yield "KD, stored teacher", pass_of(KDTask(s, teacher), s, loader, store)
    s = student()
    yield "DiSK exact, stored teacher", pass_of(DiSKTask(s, teacher), s, loader, store)
    s = student()
    yield "KD, online teacher", pass_of(KDTask(s, teacher), s, loader)
    s = student()
    yield "DiSK exact, online teacher", pass_of(DiSKTask(s, teacher), s, loader)
    s = student()
    yield "timm LogitDistillationTask", pass_of(LogitDistillationTask(s, teacher, verbose=False), s, loader)
    yield "teacher alone, one fixed batch", teacher_alone(frozen, batch, steps)
    yield "exact helper alone", helper_alone(batch, steps)


def main() -> None:
    """Time the cases and print their ratios to the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="cifar_resnet10_s")
    parser.add_argument("--teacher", default="cifar_resnet10_l")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        runs = dict(cases(options, device, Path(folder)))
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for repetition in range(options.repetitions + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                images = run()
                if device.type != "cpu":
                    torch.accelerator.synchronize()
                if repetition:  # the first warms up
                    rates[name].append(images / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    table = Table(title=f"{options.student} from {options.teacher}, batch {options.batch_size}, {device}")
    for title in ("case", "images/s", "of the bound", "seconds per bound second"):
        table.add_column(title, justify="left" if title == "case" else "right")
    first = next(iter(medians.values()))
    for name, rate in medians.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / first:.2f}", f"{first / rate:.3f}")
    where = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    table.caption = f"median of {options.repetitions} interleaved passes; {where}"
    Console().print(table)


if __name__ == "__main__":
    main()
