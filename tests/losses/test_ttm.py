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
from disk_kd.losses import kd_loss, ttm_loss

SETTINGS = {"temperature": 3.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"temperature": 4.0},
        1.6709716932917675,
        0.1882348981823046,
        [
            -0.021073214861561686,
            0.05142496498616932,
            0.010539627844538595,
            -0.005677162290779537,
            -0.012518137948023918,
            -0.022456599503971397,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"temperature": 10.0},
        1.6186779264068547,
        0.23061864872007684,
        [
            0.03648930218081413,
            0.02069761831588348,
            -0.027296642024718657,
            -0.0381490339181996,
            -0.036762319478515444,
            0.041882859034093736,
        ],
    ),
]


def slow_ttm(student_BC: np.ndarray, teacher_BC: np.ndarray, temperature: float) -> float:
    """With the teacher's power transform, as the paper writes it."""
    total = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        q, p = softmax_row(student, 1.0), softmax_row(teacher, 1.0)
        powers = [p_c ** (1 / temperature) for p_c in p]
        for q_c, power in zip(q, powers, strict=True):
            total += power / sum(powers) * np.log(power / sum(powers) / q_c)
    return total / len(student_BC)


def slow_renyi_entropy(p: np.ndarray, order: float) -> float:
    return np.log(sum(p_c**order for p_c in p)) / (1 - order)


@pytest.mark.parametrize("temperature", [0.7, 3.0, 10.0])
def test_agrees_with_slow_loop(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_ttm(*numpy_of(student_BC, teacher_BC), temperature)
    assert ttm_loss(student_BC, teacher_BC, temperature=temperature).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = ttm_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_zero_at_the_softened_teacher_and_kd_at_temperature_one() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    assert ttm_loss(teacher_BC / 3, teacher_BC, temperature=3.0).item() == pytest.approx(0, abs=1e-12)
    assert ttm_loss(teacher_BC, teacher_BC, temperature=3.0) > 0.01
    kd = kd_loss(student_BC, teacher_BC, student_temperature=1.0, teacher_temperature=1.0)
    torch.testing.assert_close(ttm_loss(student_BC, teacher_BC, temperature=1.0), kd)


def test_is_kd_less_the_students_renyi_entropy() -> None:
    """Equation 15 of the paper."""
    student_BC, teacher_BC, *_ = random_inputs()
    kd = kd_loss(student_BC, teacher_BC, student_temperature=3.0, teacher_temperature=3.0).item() / 9
    softened_BC = [softmax_row(row, 3.0) for row in teacher_BC.numpy()]
    shannon = np.mean([-(p * np.log(p)).sum() for p in softened_BC])
    renyi = np.mean([slow_renyi_entropy(softmax_row(row, 1.0), 1 / 3) for row in student_BC.detach().numpy()])
    expected = 3 * kd - 2 * renyi + 2 * shannon
    assert ttm_loss(student_BC, teacher_BC, temperature=3.0).item() == pytest.approx(expected, abs=1e-12)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: ttm_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: ttm_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: ttm_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(ttm_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        ttm_loss(student_BC, teacher_BC, **{**SETTINGS, "temperature": temperature})


def test_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        ttm_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)
