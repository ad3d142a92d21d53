from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

torch.set_num_threads(1)

TINY = [
    "--data.limit_train=120",
    "--student.name=cifar_resnet10_xxxs",
    "--train.epochs=2",
    "--train.batch_size=24",
    "--train.log_every=2",
    "--train.warmup_epochs=0",
    "--quiet",
]
"""Options that make a run of digits a second long: 5 steps an epoch."""


@pytest.fixture(scope="session")
def tiny() -> Sequence[str]:
    return TINY
