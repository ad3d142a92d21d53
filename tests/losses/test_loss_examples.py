"""The examples in the docstrings run, and every loss works under torch.compile in one graph."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from loss_cases import random_inputs

import disk_kd.losses
from disk_kd.losses import budget_penalty, kd_loss, mlkd_loss, scaffolded_kl, scaffolded_nll, skd_loss

TEMPERATURES = {"student_temperature": 3.0, "teacher_temperature": 2.0}


NAMES = sorted(path.stem for path in Path(disk_kd.losses.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name: str) -> None:
    module = importlib.import_module(f"disk_kd.losses.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(
    "loss",
    [
        partial(scaffolded_kl, top_k=3, **TEMPERATURES),
        partial(scaffolded_nll, top_k=3, **TEMPERATURES),
    ],
)
def test_compiles_in_one_graph(loss: Callable[..., torch.Tensor]) -> None:
    inputs = random_inputs()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))
    gradients = torch.autograd.grad(compiled(*inputs), (inputs[0], inputs[3]))
    torch.testing.assert_close(gradients, torch.autograd.grad(loss(*inputs), (inputs[0], inputs[3])))


def test_kd_and_penalty_compile_in_one_graph() -> None:
    inputs = random_inputs()
    kd, penalty = partial(kd_loss, **TEMPERATURES), partial(budget_penalty, max_ce=5.0, top_k=3, weight=0.9)

    def both() -> torch.Tensor:
        return kd(*inputs[:2]) + penalty(*inputs, budget=0.1, price=torch.tensor(2.0))

    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(), both())


@pytest.mark.parametrize(
    "loss",
    [
        partial(mlkd_loss, instance_weight=1.0, batch_weight=1.0, class_weight=1.0, temperatures=[2.0, 4.0]),
        partial(skd_loss, instance_weight=1.0, direction_weight=1.0, temperature=4.0, tikhonov=0.1),
    ],
)
def test_relations_compile_in_one_graph(loss: Callable[..., torch.Tensor]) -> None:
    """Nothing reads a tensor's value, which would stop an accelerator each step."""
    student, teacher, *_ = random_inputs()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), loss(student, teacher))


def test_all_losses_are_exported() -> None:
    assert {"kd_loss", "dkd_loss", "rkd_loss", "scaffolded_kl", "budget_penalty"} <= set(disk_kd.losses.__all__)
    assert len(disk_kd.losses.__all__) >= len(NAMES)
