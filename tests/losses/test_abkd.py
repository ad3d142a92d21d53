from __future__ import annotations

import numpy as np
import pytest
import torch
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
from disk_kd.losses import abkd_loss, kd_loss

SETTINGS = {"alpha": 0.8, "beta": 0.3, "temperature": 3.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"alpha": 0.8, "beta": 0.3, "temperature": 4.0},
        3.9904278340357764,
        0.31660455045307795,
        [
            -0.031058212824384587,
            0.06977755806942312,
            0.055679695831022814,
            0.007068003574868826,
            -0.015393266609249164,
            -0.03763513480751366,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"alpha": 0.5, "beta": 0.0, "temperature": 1.0},
        8.538210822658773,
        0.8100090150561335,
        [
            0.16094178728764125,
            0.13917046486710521,
            -0.0241024815085572,
            -0.22619455755365492,
            -0.25214385647250687,
            0.09527797099296248,
        ],
    ),
]


def slow_abkd(student_BC: np.ndarray, teacher_BC: np.ndarray, a: float, b: float, temperature: float) -> float:
    total = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        q_row, p_row = softmax_row(student, temperature), softmax_row(teacher, temperature)
        for q, p in zip(q_row, p_row, strict=True):
            if b == 0:
                total += (p**a * np.log(p**a / q**a) - p**a + q**a) / a**2
            elif a == 0:
                total += (q**b * np.log(q**b / p**b) - q**b + p**b) / b**2
            else:
                total -= (p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)
    return temperature**2 * total / len(student_BC)


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.3), (0.5, 0.5), (1.3, 0.4), (0.7, 0.0), (0.0, 0.6), (1.0, 1.0)])
def test_agrees_with_slow_loop(a: float, b: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_abkd(*numpy_of(student_BC, teacher_BC), a, b, 3.0)
    found = abkd_loss(student_BC, teacher_BC, alpha=a, beta=b, temperature=3.0)
    assert found.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = abkd_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_its_corners_are_kd_and_reverse_kd() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    both = {"student_temperature": 3.0, "teacher_temperature": 3.0}
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0)):
        found = abkd_loss(student_BC, teacher_BC, alpha=alpha, beta=beta, temperature=3.0)
        torch.testing.assert_close(found, kd_loss(student_BC, teacher_BC, **both, reverse=beta))


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_is_continued_by_its_limits(power: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs(scale=1.0)
    for name, other in (("alpha", "beta"), ("beta", "alpha")):
        limit, near = ({name: power, other: small} for small in (0.0, 1e-6))
        found = abkd_loss(student_BC, teacher_BC, **near, temperature=2.0)
        torch.testing.assert_close(
            found, abkd_loss(student_BC, teacher_BC, **limit, temperature=2.0), rtol=1e-4, atol=0
        )


def test_is_the_squared_distance_and_zero_at_the_teacher() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    squared = 0.5 * (student_BC.softmax(1) - teacher_BC.softmax(1)).square().sum(1).mean()
    torch.testing.assert_close(abkd_loss(student_BC, teacher_BC, alpha=1.0, beta=1.0, temperature=1.0), squared)
    for alpha, beta in ((0.8, 0.3), (0.8, 0.0), (0.0, 0.3)):
        zero = abkd_loss(teacher_BC, teacher_BC, alpha=alpha, beta=beta, temperature=2.0)
        assert zero.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (1.0, 0.0), (2.0, 0.5)])
def test_a_masked_class_costs_what_the_student_gives_it(alpha: float, beta: float) -> None:
    teacher_BC = torch.tensor([[1.0, -float("inf"), 0.0]])
    low_BC = torch.tensor([[1.0, -1e4, 0.0]])
    losses = [abkd_loss(torch.zeros(1, 3), t, alpha=alpha, beta=beta, temperature=1.0) for t in (teacher_BC, low_BC)]
    assert losses[0].isfinite()
    torch.testing.assert_close(*losses)
    assert abkd_loss(torch.zeros(1, 3), teacher_BC, alpha=0.0, beta=1.0, temperature=1.0) == float("inf")


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: abkd_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: abkd_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: abkd_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(abkd_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        abkd_loss(student_BC, teacher_BC, **{**SETTINGS, "temperature": temperature})


def test_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        abkd_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.5), (0.5, -0.1), (0.0, 0.0), (float("nan"), 0.5)])
def test_refuses_powers(alpha: float, beta: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="alpha and beta must be 0 or more, and not both 0, got"):
        abkd_loss(student_BC, teacher_BC, alpha=alpha, beta=beta, temperature=1.0)
