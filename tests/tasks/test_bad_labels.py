"""Labels that name no class are told in one line, by tasks and by losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from disk_kd.errors import DataError, ModelError
from disk_kd.helpers import exact_helper
from disk_kd.losses import ContrastiveLoss, budget_penalty, dkd_loss, nkd_loss, scaffolded_kl, scaffolded_nll
from disk_kd.tasks import METHODS, StudentTask

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELLED = ("dkd", "nkd", "timm-logits", "timm-features")
UNLABELLED = ("ce", "kd", "dist", "jsd", "disk")
S, T = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind()
HELP = torch.full((4,), 0.5)
TEMPERATURES = {"student_temperature": 1.0, "teacher_temperature": 1.0}


class Plain(torch.nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def make(name: str) -> StudentTask:
    models = [timm.create_model("cifar_resnet10_xxxs", num_classes=3) for _ in range(1 if name == "ce" else 2)]
    return METHODS[name](*models)


@pytest.mark.parametrize("name", [*LABELLED, *UNLABELLED])
def test_a_task_names_the_labels_that_it_expects(name: str) -> None:
    task = make(name)
    for labels in ([1, 2, 3, 1], [-1, 0, 1, 2]):
        with pytest.raises(DataError, match=r"labels are expected in 0 … 2(, or -100 .*)?, got .*; count them from 0"):
            task(IMAGES, torch.tensor(labels))
    with pytest.raises(DataError, match=r"class indices of shape \(4,\), or shares of .* \(4, 3\), got torch.int64 of"):
        task(IMAGES, torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"got torch.float32 of shape \(4,\); give one class per image"):
        task(IMAGES, torch.zeros(4))


@pytest.mark.parametrize("name", LABELLED)
def test_a_method_that_needs_labels_says_so(name: str) -> None:
    assert not METHODS[name].unlabelled
    with pytest.raises(DataError, match="in 0 … 2, got -100 … 1; give each image one"):
        make(name)(IMAGES, torch.tensor([0, 1, -100, 1]))


@pytest.mark.parametrize("name", UNLABELLED)
def test_the_others_learn_without(name: str) -> None:
    assert METHODS[name].unlabelled
    for labels in ([0, 1, -100, 1], [-100] * 4):
        assert make(name)(IMAGES, torch.tensor(labels))["loss"].isfinite()


def _contrast(labels: Tensor) -> Tensor:
    loss = ContrastiveLoss(3, 3, torch.arange(9) % 3, negatives=2, seed=0)
    return loss(S, T, labels, torch.arange(4))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "dkd": lambda y: dkd_loss(S, T, y, alpha=1.0, beta=8.0, temperature=4.0),
    "nkd": lambda y: nkd_loss(S, T, y, gamma=1.5, temperature=1.0),
    "crd": _contrast,
    "scaffolded_kl": lambda y: scaffolded_kl(S, T, y, HELP, top_k=2, **TEMPERATURES),
    "scaffolded_nll": lambda y: scaffolded_nll(S, T, y, HELP, top_k=2, **TEMPERATURES),
    "budget_penalty": lambda y: budget_penalty(S, T, y, HELP, budget=0.1, price=1.0, max_ce=5.0, top_k=2),
    "exact_helper": lambda y: exact_helper(S, T, y, top_k=2, price=0.1, max_ce=5.0, **TEMPERATURES),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_loss_names_the_labels_that_it_expects(name: str, label: int) -> None:
    assert LOSSES[name](torch.tensor([0, 1, 2, 2])).isfinite().all()
    with pytest.raises(DataError, match="labels are expected in 0 … 2, got "):
        LOSSES[name](torch.tensor([0, 1, label, 2]))


def test_labels_of_compiled_code_are_not_read() -> None:
    compiled: Any = torch.compile(LOSSES["dkd"], fullgraph=True, backend="eager")
    assert compiled(torch.tensor([0, 1, 2, 1])).isfinite()


def test_crd_names_ids_that_it_does_not_know() -> None:
    loss = ContrastiveLoss(3, 3, torch.arange(9) % 3, negatives=2, seed=0)
    with pytest.raises(DataError, match="ids are expected in 0 … 8, got 0 … 9; count them from 0"):
        loss(S, T, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 9]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("name", ["timm-logits", "timm-features"])
def test_timms_methods_take_a_plain_module_with_labels_of_any_integer(name: str, dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    assert torch.equal(make_twice(name)(IMAGES, labels)["loss"], make_twice(name)(IMAGES, labels.to(dtype))["loss"])
    with pytest.raises(ModelError, match="Plain"):
        METHODS[name](Plain(), timm.create_model("cifar_resnet10_xxxs", num_classes=3))(IMAGES, labels.to(dtype))


def make_twice(name: str) -> StudentTask:
    torch.manual_seed(0)
    return make(name).eval()
