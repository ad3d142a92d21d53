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
from disk_kd.losses import ttm_loss, wttm_loss

SETTINGS = {"temperature": 3.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"temperature": 4.0},
        6.477892383948451,
        0.7262523904213039,
        [
            -0.08026642493224842,
            0.195874152037188,
            0.040144717014231536,
            -0.021623920404865903,
            -0.04768072581698764,
            -0.08553564181642416,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"temperature": 10.0},
        7.614144003613373,
        1.0848106399733586,
        [
            0.17162438564117563,
            0.09734951932204343,
            -0.12838747626208818,
            -0.179430795266288,
            -0.17290849970165328,
            0.1969925298928236,
        ],
    ),
]


def slow_wttm(student_BC: np.ndarray, teacher_BC: np.ndarray, temperature: float) -> float:
    total = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        q, p = softmax_row(student, 1.0), softmax_row(teacher, 1.0)
        powers = [p_c ** (1 / temperature) for p_c in p]
        divergence = 0.0
        for q_c, power in zip(q, powers, strict=True):
            divergence += power / sum(powers) * np.log(power / sum(powers) / q_c)
        total += sum(powers) * divergence
    return total / len(student_BC)


@pytest.mark.parametrize("temperature", [0.7, 3.0, 10.0])
def test_agrees_with_slow_loop(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_wttm(*numpy_of(student_BC, teacher_BC), temperature)
    assert wttm_loss(student_BC, teacher_BC, temperature=temperature).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = wttm_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_ttm_where_the_weight_is_one() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.testing.assert_close(
        wttm_loss(student_BC, teacher_BC, temperature=1.0), ttm_loss(student_BC, teacher_BC, temperature=1.0)
    )
    sure_BC = torch.full_like(teacher_BC, -1e4).fill_diagonal_(1e4)
    torch.testing.assert_close(
        wttm_loss(student_BC, sure_BC, temperature=3.0), ttm_loss(student_BC, sure_BC, temperature=3.0)
    )


def test_an_even_teacher_weighs_most_and_zero_stays_zero() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    even_BC = torch.zeros_like(teacher_BC)
    ratio = wttm_loss(student_BC, even_BC, temperature=3.0) / ttm_loss(student_BC, even_BC, temperature=3.0)
    assert ratio.item() == pytest.approx(8 ** (1 - 1 / 3))
    assert wttm_loss(teacher_BC / 3, teacher_BC, temperature=3.0).item() == pytest.approx(0, abs=1e-12)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: wttm_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: wttm_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: wttm_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(wttm_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        wttm_loss(student_BC, teacher_BC, **{**SETTINGS, "temperature": temperature})


def test_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        wttm_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)
