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
from disk_kd.losses import jensen_shannon_loss, kd_loss

TEMPERATURES = {"student_temperature": 3.0, "teacher_temperature": 2.0}
SETTINGS = {**TEMPERATURES, "skew": 0.3}


def slow_jensen_shannon(student_BC: np.ndarray, teacher_BC: np.ndarray, skew: float, ts: float, tt: float) -> float:
    total = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        s, t = softmax_row(student, ts), softmax_row(teacher, tt)
        for y in range(len(t)):
            m = skew * t[y] + (1 - skew) * s[y]
            total += skew * t[y] * np.log(t[y] / m) + (1 - skew) * s[y] * np.log(s[y] / m)
    return ts * tt * total / len(student_BC) / (skew * (1 - skew))


@pytest.mark.parametrize("skew", [0.1, 0.5, 0.9])
def test_agrees_with_slow_loop(skew: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_jensen_shannon(*numpy_of(student_BC, teacher_BC), skew, 3.0, 2.0)
    found = jensen_shannon_loss(student_BC, teacher_BC, **TEMPERATURES, skew=skew)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    student_BC, teacher_BC, *_ = golden_inputs({"B": 4, "C": 12, "seed": 1})
    loss = jensen_shannon_loss(student_BC, teacher_BC, **SETTINGS)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(4.676306756419757, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(0.2898290070439627, abs=1e-9)


def test_its_limits_are_kd_and_reverse_kd() -> None:
    student_BC, teacher_BC, *_ = random_inputs(scale=1.0)
    for skew, reverse in ((1e-6, 0.0), (1 - 1e-6, 1.0)):
        found = jensen_shannon_loss(student_BC, teacher_BC, **TEMPERATURES, skew=skew)
        torch.testing.assert_close(
            found, kd_loss(student_BC, teacher_BC, **TEMPERATURES, reverse=reverse), rtol=1e-4, atol=0
        )


def test_is_zero_at_the_teacher_curved_as_kd_and_bounded() -> None:
    teacher_BC = random_inputs()[1]
    same = {"student_temperature": 1.0, "teacher_temperature": 1.0}
    assert jensen_shannon_loss(teacher_BC, teacher_BC, **same).item() == pytest.approx(0, abs=1e-12)
    near_BC = teacher_BC + 1e-3 * random_inputs(seed=1)[1]
    torch.testing.assert_close(
        jensen_shannon_loss(near_BC, teacher_BC, **same), kd_loss(near_BC, teacher_BC, **same), rtol=1e-2, atol=0
    )
    far = jensen_shannon_loss(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), **same)
    assert far.item() == pytest.approx(4 * np.log(2), rel=1e-6)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: jensen_shannon_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: jensen_shannon_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: jensen_shannon_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(jensen_shannon_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


@pytest.mark.parametrize("skew", [0.0, 1.0, float("nan")])
def test_refuses_skew(skew: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="skew must be above 0 and below 1, got"):
        jensen_shannon_loss(student_BC, teacher_BC, **TEMPERATURES, skew=skew)
