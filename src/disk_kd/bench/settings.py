"""Settings of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from disk_kd.errors import ConfigError
from disk_kd.models import create_model, multiply_adds

_MOST = {"classes": 1_000_000, "image_size": 10_000}


@dataclass(frozen=True)
class BenchSettings:
    """Models, sizes and parts of a benchmark. The images are noise, so it needs no weights and no dataset.

    Args:
        student: Name of a timm model.
        teachers: Names of timm models. Cases with a teacher run once for each; sweeps and memory use the first.
        classes: Number of classes.
        image_size: Image side in pixels.
        samples: Number of training images in a timed epoch.
        batch_size: Number of images in an optimiser step.
        auto_augment: Use AutoAugment's CIFAR-10 policy in addition to crop, flip and cutout, as the DiSK paper does.
        repetitions: Number of timed epochs of each case, after one warm-up epoch. Cases are interleaved; the median
            counts.
        peers: Also time a plain PyTorch loop, timm's distillation task and, if installed, torchdistill.
        workers: Number of worker processes of the peers' DataLoader. null uses one for each core.
        memory: Also measure peak memory, each case in its own process.
        memory_samples: Number of training images in memory for that measurement.
        profile: Also list the operators that take the most time.
        sweeps: Also vary the batch size, the number of classes and the dataset size, without compilation.
        sweep_batch_sizes: Batch sizes of the first sweep.
        sweep_classes: Numbers of classes of the second sweep.
        sweep_samples: Dataset sizes of the third sweep, in images.
        compile: Compile our training steps. The lower bound and the peers always run without compilation, as most users
            run them.
        compile_mode: Mode of torch.compile. reduce-overhead uses CUDA graphs.
        precision: Precision of our training steps and our teacher: fp32, or autocast to bf16 or fp16. The lower bound
            and the peers use fp32.
        device: Device: cpu, cuda, cuda:1 or mps. auto takes the accelerator if there is one.
        output: Folder for tables, figure, profile and environment. null only prints them.

    Raises:
        ConfigError: a value is out of range.
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
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"{name} must be at most {most:,}, not {getattr(self, name)}")
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
            if max(self.sweep_classes) > _MOST["classes"]:
                raise ConfigError(f"sweep_classes must be at most {_MOST['classes']:,}, not {max(self.sweep_classes)}")
        _each_once("teachers", self.teachers)


def check_models(settings: BenchSettings) -> None:
    """Build every model once and run it on one image.

    Raises:
        ModelError: a name is unknown, or a model does not accept such images.
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
