from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

TINY = [
    "--data.limit_train=120",
    "--student.name=cifar_resnet10_xxxs",
    "--train.passes=2",
    "--train.batch_size=24",
    "--train.log_every=2",
    "--train.warmup_passes=0",
    "--quiet",
]
"""Options that make a run of digits a second long: 5 steps a pass."""


@pytest.fixture(scope="session")
def tiny() -> Sequence[str]:
    return TINY


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made dataset of 100 classes: four training images and one test image each, 16x16 noise of its own colour."""
    root = tmp_path_factory.mktemp("folders")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for label in range(100):
            folder = root / split / f"class{label:02d}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 80, (16, 16, 3)) + generator.integers(0, 175, 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root
