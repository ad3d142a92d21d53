from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from disk_kd.cli import main


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A folder of finished runs on digits: a teacher, CE, KD, and DiSK with two seeds; and DiSK on noisy labels."""
    folder = tmp_path_factory.mktemp("report")
    common = [*tiny, f"--runs={folder}", "--train.epochs=12", "--train.evaluate_every=3"]
    learn = [*common, "--teacher.name=cifar_resnet10_xxs", f"--teacher.weights={folder / 'teacher'}"]
    disk = [*learn, "--method=disk", "--description=DiSK <b>exact</b> & true"]
    for command, name, options in (
        ("train", "teacher", [*common, "--student.name=cifar_resnet10_xxs", "--train.epochs=40"]),
        ("train", "ce/seed0", common),
        ("distill", "kd/seed0", [*learn, "--method=kd"]),
        ("distill", "disk/seed0", disk),
        ("distill", "disk/seed1", [*disk, "--train.seed=1"]),
        ("distill", "noisy", [*disk, "--data.label_noise=0.1"]),
    ):
        assert main([command, *options, f"--output={folder / name}"]) == 0
    return folder
