"""What a benchmark measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from disk_kd.errors import ConfigError
from disk_kd.models import create_model, multiply_adds


@dataclass(frozen=True)
class BenchSettings:
    """Models, sizes and parts of a benchmark. The images are noise: no weights, no dataset.

    Args:
        student: a timm model.
        teachers: timm models; what depends on the teacher is repeated for each. Sweeps and memory take the first.
        classes: of the models and the labels.
        image_size: side of the images in pixels.
        samples: training images in a timed epoch.
        batch_size: images in one optimiser step.
        auto_augment: AutoAugment's CIFAR-10 policy beside crop, flip and cutout, as in the method's protocol.
        repetitions: timed epochs of every case, interleaved, after one to warm up; their median counts.
        peers: also time a plain PyTorch loop, timm's distillation task and torchdistill (where it is installed).
        workers: worker processes of the peers' DataLoader; null: one a core.
        memory: also measure peak memory, each case in a process of its own.
        memory_samples: training images in memory there.
        profile: also list the operators that take most time.
        sweeps: also time against batch size, classes and dataset size, without compilation.
        sweep_batch_sizes: batch sizes of the first sweep.
        sweep_classes: numbers of classes of the second.
        sweep_samples: dataset sizes of the third.
        compile: compile our steps; the bound and the peers always run eagerly, as their users run them.
        compile_mode: of torch.compile; reduce-overhead replays CUDA graphs.
        precision: of our steps and our teacher: fp32, or autocast to bf16 or fp16. The bound and the peers have fp32.
        device: cpu, cuda, cuda:1, mps; auto takes the accelerator when there is one.
        output: folder for the tables, figure, profile and environment; null: print only.

    Raises:
        ConfigError: a value out of its range.
    """

    student: str = "cifar_resnet10_s"
    teachers: list[str] = field(default_factory=lambda: ["cifar_resnet10_l"])
    classes: int = 100
    image_size: int = 32
    samples: int = 1000
    batch_size: int = 200
    auto_augment: bool = True
    repetitions: int = 5
    peers: bool = True
    workers: int | None = None
    memory: bool = True
    memory_samples: int = 50_000
    profile: bool = True
    sweeps: bool = True
    sweep_batch_sizes: list[int] = field(default_factory=lambda: [25, 50, 100, 200, 400, 800])
    sweep_classes: list[int] = field(default_factory=lambda: [10, 100, 1000, 10_000])
    sweep_samples: list[int] = field(default_factory=lambda: [1000, 5000, 20_000])
    compile: bool = True
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    output: Path | None = None

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "repetitions": 1, "classes": 2, "image_size": 8}.items():
            _at_least(name, getattr(self, name), least)
        _at_least("samples", self.samples, self.batch_size, "the batch size")
        if self.memory:
            _at_least("memory_samples", self.memory_samples, self.batch_size, "the batch size")
        if self.workers is not None:
            _at_least("workers", self.workers, 0)
        if self.sweeps:
            for name, least in {"batch_sizes": 1, "classes": 2, "samples": self.batch_size}.items():
                values = getattr(self, f"sweep_{name}")
                _each_once(f"sweep_{name}", values)
                _at_least(f"sweep_{name}", min(values), least)
        _each_once("teachers", self.teachers)


def check_models(settings: BenchSettings) -> None:
    """Build every model once and show it an image.

    Raises:
        ModelError: a name is unknown, or a model does not take such images.
    """
    for name in (settings.student, *settings.teachers):
        model = create_model(name, num_classes=settings.classes)
        multiply_adds(model, (3, settings.image_size, settings.image_size))


def _at_least(name: str, value: int, least: int, why: str = "") -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}{why and f' ({why})'}, not {value}")


def _each_once(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{name} must name at least one value, and none twice, not {list(values)}")
