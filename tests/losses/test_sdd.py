from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, extreme_inputs, numpy_of, softmax_row
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses import kd_loss
from disk_kd.losses.sdd import sdd_loss

SETTINGS = {"beta": 2.3, "temperature": 3.0}


def inputs(batch: int = 4, regions: int = 5, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits (B, R, C) of student and teacher."""
    i = torch.arange(batch * regions * classes, dtype=torch.float64).view(batch, regions, classes)
    return (3 * torch.sin(1.3 * i)).requires_grad_(), 4 * torch.cos(0.5 * i + 1)


def slow_sdd(student_BRC: np.ndarray, teacher_BRC: np.ndarray) -> float:
    total = 0.0
    for student_RC, teacher_RC in zip(student_BRC, teacher_BRC, strict=True):
        image = int(np.argmax(teacher_RC[0]))
        for student, teacher in zip(student_RC, teacher_RC, strict=True):
            s, t = softmax_row(student, 3.0), softmax_row(teacher, 3.0)
            consistent = int(np.argmax(teacher)) == image
            total += (1.0 if consistent else 2.3) * 9.0 * sum(t * np.log(t / s))
    return total / len(student_BRC)


def test_agrees_with_slow_loop() -> None:
    student, teacher = inputs()
    assert 0 < (teacher.argmax(2) != teacher.argmax(2)[:, :1]).sum() < 16
    expected = slow_sdd(*numpy_of(student, teacher))
    assert sdd_loss(student, teacher, **SETTINGS).item() == pytest.approx(expected, abs=1e-11)


def test_agrees_with_frozen_numbers() -> None:
    """Measured in float64 once the value agreed with the slow loop."""
    student, teacher = inputs()
    loss = sdd_loss(student, teacher, beta=2.0, temperature=4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(31.548654694046867, abs=1e-9)
    assert gradient.norm().item() == pytest.approx(2.0808033020127112, abs=1e-9)
    frozen_row = [0.427264876065274, 0.15675394001549062, -0.1315969408275027]
    assert gradient[0, 1, :3].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_kd_of_the_image_and_a_sum_over_alike_regions() -> None:
    student, teacher = inputs()
    whole = student[:, :1], teacher[:, :1]
    kd = kd_loss(student[:, 0], teacher[:, 0], student_temperature=3.0, teacher_temperature=3.0)
    torch.testing.assert_close(sdd_loss(*whole, **SETTINGS), kd)
    torch.testing.assert_close(sdd_loss(*(x.expand(-1, 5, -1) for x in whole), **SETTINGS), 5 * kd)


def test_beta_weighs_the_regions_of_another_class_alone() -> None:
    _, teacher = inputs(batch=1, regions=3)
    teacher[0] = torch.tensor([[2.0, 1, 0, 0, 0, 0], [3.0, 0, 0, 0, 0, 0], [0.0, 3, 0, 0, 0, 0]])
    student = torch.zeros_like(teacher)
    losses = [sdd_loss(student, teacher, beta=beta, temperature=1.0).item() for beta in (0.0, 1.0, 3.0)]
    other = kd_loss(student[:, 2], teacher[:, 2], student_temperature=1.0, teacher_temperature=1.0).item()
    assert losses[1] - losses[0] == pytest.approx(other)
    assert losses[2] - losses[0] == pytest.approx(3 * other)


def test_is_zero_at_teacher() -> None:
    student, _ = inputs()
    assert sdd_loss(student, student, **SETTINGS).item() == pytest.approx(0, abs=1e-12)


def test_ignores_shifts_and_the_order_of_classes_and_regions() -> None:
    student, teacher = inputs()
    expected = sdd_loss(student, teacher, **SETTINGS)
    torch.testing.assert_close(sdd_loss(student + 2, teacher - 7, **SETTINGS), expected)
    regions, classes = torch.tensor([0, 3, 1, 4, 2]), torch.tensor([3, 0, 5, 1, 2, 4])
    moved = (x[:, regions][:, :, classes] for x in (student, teacher))
    torch.testing.assert_close(sdd_loss(*moved, **SETTINGS), expected)


def test_gradient_flows_into_student_alone() -> None:
    student, teacher = inputs()
    torch.autograd.gradcheck(lambda s: sdd_loss(s, teacher, **SETTINGS), student)
    teacher.requires_grad_()
    sdd_loss(student, teacher, **SETTINGS).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_and_masked_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    student, teacher = student_BC[:, None].expand(-1, 2, -1), teacher_BC[:, None].repeat(1, 2, 1)
    assert_finite(sdd_loss(student, teacher, **SETTINGS), student_BC)
    teacher[:, :, 0] = -math.inf
    assert_finite(sdd_loss(student, teacher, **SETTINGS), student_BC)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0, "temperature": 4.0}, "beta must be a number not below 0, got -1.0; try 2"),
        ({"beta": float("nan"), "temperature": 4.0}, "beta must be a number not below 0, got nan"),
        ({"beta": 2.0, "temperature": 0.0}, "temperature must be finite and above 0, got 0.0; try 4"),
    ],
)
def test_refuses_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sdd_loss(*inputs(), **settings)


def test_refuses_other_regions() -> None:
    with pytest.raises(
        ConfigError, match=r"\(batch, regions, classes\), got \(2, 5, 10\) and \(2, 21, 10\); give both"
    ):
        sdd_loss(torch.zeros(2, 5, 10), torch.zeros(2, 21, 10), **SETTINGS)
    with pytest.raises(ConfigError, match=r"\(batch, regions, classes\), got \(2, 10\) and \(2, 10\)"):
        sdd_loss(torch.zeros(2, 10), torch.zeros(2, 10), **SETTINGS)
