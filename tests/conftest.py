from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Idle threads sleep. A worker of a comparison has as many threads as cores, which other tests use too."""

TINY = [
    "--data.limit_train=120",
    "--student.name=cifar_resnet10_xxxs",
    "--train.epochs=2",
    "--train.batch_size=24",
    "--train.log_every=2",
    "--train.warmup_epochs=0",
    "--train.compile=false",
    "--quiet",
]
"""Options that make a run of digits half a second long: 5 steps an epoch."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first, tests that compile last.

    The gradients of compiled code start threads of PyTorch, after which no process that is forked from here can train.
    """
    forks = functools.cache(lambda path: bool(re.search(r"^from processes |os\.fork", path.read_text(), re.MULTILINE)))
    items.sort(key=lambda item: 2 if "compil" in item.name else 0 if forks(item.path) else 1)


@pytest.fixture(scope="session")
def tiny() -> Sequence[str]:
    return TINY


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_read_or_imported_twice() -> Iterator[None]:
    """Hundreds of runs read scikit-learn's file of digits, and dozens of worker processes import torch.

    The file is kept. The workers of a comparison are forked from one process that has imported all, where in use each
    starts empty; the commands of `test_compare.py` that run as processes of their own show that way. Imports stand
    here: the process that hands out the tests reads this file too, and needs none of them.
    """
    import torch
    from sklearn import datasets

    from disk_kd.comparison import worker as comparison
    from processes import forking

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", functools.cache(datasets.load_digits))
        patch.setattr(comparison, "get_context", forking)
        yield
