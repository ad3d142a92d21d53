from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    assert_finite,
    assert_invariant,
    assert_teacher_is_spared,
    extreme_inputs,
    golden_inputs,
    numpy_of,
    random_inputs,
    softmax_row,
)

from disk_kd.errors import ConfigError
from disk_kd.losses.dkd import dkd_loss
from disk_kd.losses.nkd import nkd_loss

SETTINGS = {"gamma": 1.5, "temperature": 2.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"gamma": 1.5, "temperature": 1.0},
        5.644557436490919,
        0.4399627448218645,
        [
            -0.016051640613942524,
            0.09979225569051696,
            0.0261736549755402,
            0.0006045392461015382,
            -0.0016104247881006738,
            -0.04280757009586723,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"gamma": 0.5, "temperature": 4.0},
        16.858049385235606,
        0.364416141426376,
        [
            0.08189706397097651,
            0.06422136309839917,
            -0.03390669549243118,
            -0.07168580832560664,
            -0.11446299093139223,
            0.031146563971133964,
        ],
    ),
]


def slow_nkd(student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray) -> float:
    total = 0.0
    for student, teacher, y in zip(student_BC, teacher_BC, targets_B, strict=True):
        total -= softmax_row(teacher, 1.0)[y] * np.log(softmax_row(student, 1.0)[y])
        s_hat, t_hat = softmax_row(np.delete(student, y), 2.0), softmax_row(np.delete(teacher, y), 2.0)
        total -= 1.5 * 4.0 * sum(t * np.log(s) for s, t in zip(s_hat, t_hat, strict=True))
    return total / len(student_BC)


def test_agrees_with_slow_loop() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    expected = slow_nkd(*numpy_of(student_BC, teacher_BC, targets_B))
    assert nkd_loss(student_BC, teacher_BC, targets_B, **SETTINGS).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, targets_B, _ = golden_inputs(case)
    loss = nkd_loss(student_BC, teacher_BC, targets_B, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_first_term_is_cross_entropy_where_the_teacher_is_sure() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    sure_BC = teacher_BC.scatter(1, targets_B[:, None], 1e3)
    loss = nkd_loss(student_BC, sure_BC, targets_B, gamma=0.0, temperature=2.0)
    torch.testing.assert_close(loss, F.cross_entropy(student_BC, targets_B))


def test_second_term_has_the_gradient_of_nckd() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    inputs = student_BC, teacher_BC, targets_B
    others = nkd_loss(*inputs, gamma=1.5, temperature=2.0) - nkd_loss(*inputs, gamma=0.0, temperature=2.0)
    nckd = dkd_loss(*inputs, alpha=0.0, beta=1.5, temperature=2.0)
    torch.testing.assert_close(torch.autograd.grad(others, student_BC), torch.autograd.grad(nckd, student_BC))
    assert others > nckd


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: nkd_loss(s, t, y, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    torch.autograd.gradcheck(lambda s: nkd_loss(s, teacher_BC, targets_B, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: nkd_loss(s, t, y, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, targets_B, _ = extreme_inputs(dtype, 0.0)
    assert_finite(nkd_loss(student_BC, teacher_BC, targets_B, **SETTINGS), student_BC)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        nkd_loss(student_BC, teacher_BC, targets_B, gamma=1.5, temperature=temperature)


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        nkd_loss(torch.zeros(2, 10), torch.zeros(2, 100), torch.zeros(2, dtype=torch.int64), **SETTINGS)
    with pytest.raises(ConfigError, match=r"targets must be int64 class indices of shape \(2,\)"):
        nkd_loss(torch.zeros(2, 10), torch.zeros(2, 10), torch.zeros(2, 10), **SETTINGS)
    with pytest.raises(ConfigError, match="got 1 class; give at least 2 classes"):
        nkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), **SETTINGS)
