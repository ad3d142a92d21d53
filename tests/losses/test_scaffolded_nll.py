from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import (
    RELEASED,
    assert_finite,
    assert_invariant,
    assert_teacher_is_spared,
    extreme_inputs,
    golden_inputs,
    numpy_of,
    random_inputs,
    softmax_row,
    support_row,
)

from disk_kd.errors import ConfigError
from disk_kd.losses import kd_loss, scaffolded_nll

TEMPERATURES = {"student_temperature": 3.0, "teacher_temperature": 2.0}
SETTINGS = {"top_k": 3, **TEMPERATURES}


def slow_nll(
    student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray, helper_B: np.ndarray, fill: str
) -> float:
    total = 0.0
    for student, teacher, target, g in zip(student_BC, teacher_BC, targets_B, helper_B, strict=True):
        members = support_row(teacher, target, 3)
        filled = np.full(len(teacher), teacher.min() if fill == "min" else 0.0)
        filled[members] = teacher[members] / 2.0
        t, s = softmax_row(filled, 1.0), softmax_row(student, 3.0)
        total -= sum(t[y] * np.log(s[y] + g) for y in members)
    return 0.9 * 3.0 * 2.0 * total / len(student_BC)


@pytest.mark.parametrize("fill", ["min", "zero"])
def test_agrees_with_slow_loop(fill: Any) -> None:
    inputs = random_inputs()
    expected = slow_nll(*numpy_of(*inputs), fill)
    assert scaffolded_nll(*inputs, weight=0.9, fill=fill, **SETTINGS).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", RELEASED)
@pytest.mark.parametrize(
    ("name", "fill"), [("scaffolded_nll_42", "zero"), ("scaffolded_nll_50", "min"), ("imagenet_scaffolded_nll", "min")]
)
def test_agrees_with_released_numbers(case: dict[str, Any], name: str, fill: Any) -> None:
    inputs = golden_inputs(case)
    loss = scaffolded_nll(
        *inputs,
        top_k=case["top_k"],
        student_temperature=case["T_student"],
        teacher_temperature=case["T_teacher"],
        weight=1.0 if name.startswith("imagenet") else case["nll_weight"],
        fill=fill,
    )
    gradient_BC, gradient_B = torch.autograd.grad(loss, (inputs[0], inputs[3]))
    frozen = case[name]
    assert loss.item() == pytest.approx(frozen["loss"], abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen["grad_s_norm"], abs=1e-9)
    if "grad_g" in frozen:
        assert gradient_B.tolist() == pytest.approx(frozen["grad_g"], abs=1e-9)
    if "grad_g_norm" in frozen:
        assert gradient_B.norm().item() == pytest.approx(frozen["grad_g_norm"], abs=1e-9)
    if "grad_s_row0" in frozen:
        assert gradient_BC[0].tolist() == pytest.approx(frozen["grad_s_row0"], abs=1e-9)


def test_without_help_on_all_classes_is_kd_and_entropy() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    nll = scaffolded_nll(student_BC, teacher_BC, targets_B, 0 * helper_B, top_k=8, **TEMPERATURES)
    t_BC = (teacher_BC / 2.0).softmax(1)
    entropy = -(t_BC * t_BC.log()).sum(1).mean()
    torch.testing.assert_close(nll, kd_loss(student_BC, teacher_BC, **TEMPERATURES) + 6.0 * entropy)


def test_goes_negative_where_student_and_help_exceed_one() -> None:
    student_BC, _, targets_B, helper_B = random_inputs(scale=20.0)
    loss = scaffolded_nll(student_BC, student_BC.detach(), targets_B, torch.ones_like(helper_B), **SETTINGS)
    assert loss < 0


def test_ignores_class_order_and_shifts() -> None:
    """The min fill is not divided by the temperature, so it ignores the teacher's shift only at temperature 1."""
    assert_invariant(
        lambda s, t, y, g: scaffolded_nll(s, t, y, g, top_k=3, student_temperature=3.0, teacher_temperature=1.0)
    )


@pytest.mark.parametrize("fill", ["min", "zero"])
def test_gradient_flows_into_student_and_helper_alone(fill: Any) -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    torch.autograd.gradcheck(
        lambda s, g: scaffolded_nll(s, teacher_BC, targets_B, g, fill=fill, **SETTINGS), (student_BC, helper_B)
    )
    assert_teacher_is_spared(lambda s, t, y, g: scaffolded_nll(s, t, y, g, fill=fill, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("helper", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("fill", ["min", "zero"])
def test_is_finite_at_extreme_logits(dtype: torch.dtype, helper: float, fill: Any) -> None:
    inputs = extreme_inputs(dtype, helper)
    loss = scaffolded_nll(*inputs, top_k=1, fill=fill, **TEMPERATURES)
    assert_finite(loss, inputs[0], inputs[3])


def test_stays_in_float32_under_autocast() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    inputs = (student_BC.float(), teacher_BC.float(), targets_B, helper_B.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = scaffolded_nll(*inputs, **SETTINGS)
    torch.testing.assert_close(loss, scaffolded_nll(*inputs, **SETTINGS))


def test_refuses_unknown_fill() -> None:
    with pytest.raises(ConfigError, match="fill must be 'min' or 'zero', got 'zeros'; nearest: zero"):
        scaffolded_nll(*random_inputs(), fill="zeros", **SETTINGS)  # type: ignore[arg-type]
