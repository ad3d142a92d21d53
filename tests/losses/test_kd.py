from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import (
    OWN,
    RELEASED,
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
from disk_kd.losses import kd_loss

SETTINGS = {"student_temperature": 3.0, "teacher_temperature": 2.0}


def slow_kd(student_BC: np.ndarray, teacher_BC: np.ndarray, ts: float, tt: float) -> float:
    total = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        s, t = softmax_row(student, ts), softmax_row(teacher, tt)
        total += sum(t[y] * np.log(t[y] / s[y]) for y in range(len(t)))
    return ts * tt * total / len(student_BC)


def test_agrees_with_slow_loop() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_kd(*numpy_of(student_BC, teacher_BC), 3.0, 2.0)
    assert kd_loss(student_BC, teacher_BC, **SETTINGS).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", RELEASED)
def test_agrees_with_released_numbers(case: dict[str, Any]) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = kd_loss(student_BC, teacher_BC, student_temperature=case["T_student"], teacher_temperature=case["T_teacher"])
    assert loss.item() == pytest.approx(case["kd"], abs=1e-9)


@pytest.mark.parametrize("case", OWN)
def test_agrees_with_frozen_numbers(case: dict[str, Any]) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = kd_loss(student_BC, teacher_BC, student_temperature=case["T_student"], teacher_temperature=case["T_teacher"])
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    frozen = case["kd"]
    assert loss.item() == pytest.approx(frozen["loss"], abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen["grad_s_norm"], abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen["grad_s_row0"], abs=1e-9)


@pytest.mark.parametrize("reverse", [0.3, 1.0])
def test_reverse_exchanges_student_and_teacher(reverse: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    both = numpy_of(student_BC, teacher_BC)
    expected = (1 - reverse) * slow_kd(*both, 3.0, 2.0) + reverse * slow_kd(*reversed(both), 2.0, 3.0)
    found = kd_loss(student_BC, teacher_BC, **SETTINGS, reverse=reverse)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    torch.autograd.gradcheck(lambda s: kd_loss(s, teacher_BC, **SETTINGS, reverse=reverse), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: kd_loss(s, t, **SETTINGS, reverse=reverse))
    for dtype in (torch.bfloat16, torch.float32):
        student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
        assert_finite(kd_loss(student_BC, teacher_BC, **SETTINGS, reverse=reverse), student_BC)
    with pytest.raises(ConfigError, match=r"reverse must be from 0 to 1, got 1\.5"):
        kd_loss(student_BC, teacher_BC, **SETTINGS, reverse=1.5)


def test_is_zero_where_softened_student_is_softened_teacher() -> None:
    student_BC, *_ = random_inputs()
    assert kd_loss(student_BC, student_BC * 2 / 3, **SETTINGS).item() == pytest.approx(0, abs=1e-12)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: kd_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: kd_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: kd_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(kd_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


def test_stays_in_float32_under_autocast() -> None:
    student_BC, teacher_BC, *_ = (x.float() for x in random_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        loss = kd_loss(student_BC, teacher_BC, **SETTINGS)
    torch.testing.assert_close(loss, kd_loss(student_BC, teacher_BC, **SETTINGS))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="student_temperature must be finite and above 0, got"):
        kd_loss(student_BC, teacher_BC, student_temperature=temperature, teacher_temperature=1.0)
    with pytest.raises(ConfigError, match="teacher_temperature must be finite and above 0, got"):
        kd_loss(student_BC, teacher_BC, student_temperature=1.0, teacher_temperature=temperature)


def test_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        kd_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)
