from __future__ import annotations

from pathlib import Path

import pytest
import torch

from disk_kd.bench import BenchSettings, peak, plain, profiling
from disk_kd.bench.workbench import Workbench
from processes import forking

CPU = torch.device("cpu")


@pytest.fixture
def settings() -> BenchSettings:
    """A benchmark of three steps an epoch: 36 images of 8x8 pixels in batches of 10."""
    return BenchSettings(
        student="cifar_resnet10_xxxs",
        teachers=["cifar_resnet10_xxs"],
        classes=5,
        image_size=8,
        samples=36,
        batch_size=10,
        repetitions=2,
        workers=0,
        memory_samples=40,
        sweep_batch_sizes=[5, 50],
        sweep_classes=[5, 20],
        sweep_samples=[10, 30],
        compile=False,
        device="cpu",
    )


@pytest.fixture
def bench(settings: BenchSettings, tmp_path: Path) -> Workbench:
    return Workbench(settings, CPU, tmp_path)


@pytest.fixture(autouse=True)
def _processes_import_nothing_anew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of `test_plain.py`, which start as in use."""
    modules = [peak, profiling] if request.module.__name__.endswith("test_plain") else [peak, profiling, plain]
    for module in modules:
        monkeypatch.setattr(module, "get_context", forking)
