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
)
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses import budget_penalty

SETTINGS = {"budget": 0.1, "price": 3.0, "max_ce": 2.0, "top_k": 3, "weight": 0.9}


def slow_penalty(
    student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray, helper_B: np.ndarray, against: str
) -> float:
    used, logs, missed = 0.0, 0.0, 0
    for student, teacher, target, g in zip(student_BC, teacher_BC, targets_B, helper_B, strict=True):
        aim = teacher.argmax() if against == "teacher" else target
        used += g * min(-np.log(softmax_row(student, 1.0)[aim]), 2.0)
        logs += np.log(1 + 3 * g)
        missed += student.argmax() != target
    second = 0.9 * logs / len(student_BC) if against == "teacher" else 0.0
    return 3.0 * max(0.0, used / missed - 0.1) + second


@pytest.mark.parametrize("against", ["teacher", "label"])
def test_agrees_with_slow_loop(against: Any) -> None:
    inputs = random_inputs()
    expected = slow_penalty(*numpy_of(*inputs), against)
    assert budget_penalty(*inputs, against=against, **SETTINGS).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", RELEASED)
@pytest.mark.parametrize(("name", "against"), [("budget_penalty_24", "teacher"), ("budget_penalty_25", "label")])
def test_agrees_with_released_numbers(case: dict[str, Any], name: str, against: Any) -> None:
    inputs = golden_inputs(case)
    settings = {"budget": case["budget"], "max_ce": case["max_ce"], "top_k": case["top_k"], "against": against}
    loss = budget_penalty(*inputs, **settings, price=case["price"], weight=case["nll_weight"])
    (gradient_B,) = torch.autograd.grad(loss, inputs[3])
    frozen = case[name]
    assert loss.item() == pytest.approx(frozen["loss"], abs=1e-9)
    if "grad_g" in frozen:
        assert gradient_B.tolist() == pytest.approx(frozen["grad_g"], abs=1e-9)
    else:
        assert gradient_B.norm().item() == pytest.approx(frozen["grad_g_norm"], abs=1e-9)
    assert budget_penalty(*inputs, **settings, price=1.0).item() == pytest.approx(frozen["reg"], abs=1e-9)


@pytest.mark.parametrize("case", RELEASED)
def test_without_weight_is_the_released_imagenet_penalty(case: dict[str, Any]) -> None:
    loss = budget_penalty(
        *golden_inputs(case),
        budget=case["budget"],
        price=case["price"],
        max_ce=case["max_ce"],
        top_k=case["top_k"],
        weight=0.0,
    )
    assert loss.item() == pytest.approx(case["imagenet_penalty"], abs=1e-9)


def right_everywhere() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student_BC, teacher_BC, _, helper_B = random_inputs()
    return student_BC, teacher_BC, student_BC.argmax(1), helper_B


def test_divides_by_one_where_nothing_is_missed() -> None:
    student_BC, teacher_BC, targets_B, helper_B = right_everywhere()
    loss = budget_penalty(
        student_BC, teacher_BC, targets_B, helper_B, against="label", **{**SETTINGS, "budget": 0.0, "weight": 0.0}
    )
    ce_B = torch.nn.functional.cross_entropy(student_BC, targets_B, reduction="none")
    torch.testing.assert_close(loss, 3.0 * (helper_B * ce_B).sum())
    assert_finite(loss, student_BC, helper_B)


def test_is_zero_within_budget_and_without_help() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    assert budget_penalty(student_BC, teacher_BC, targets_B, 0 * helper_B, **SETTINGS) == 0
    within = budget_penalty(student_BC, teacher_BC, targets_B, helper_B, **{**SETTINGS, "budget": 9.0, "weight": 0.0})
    assert within == 0


def test_takes_schedules_from_the_device() -> None:
    inputs = random_inputs()
    tensors = {**SETTINGS, "budget": torch.tensor(0.1), "price": torch.tensor(3.0)}
    torch.testing.assert_close(budget_penalty(*inputs, **tensors), budget_penalty(*inputs, **SETTINGS))


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: budget_penalty(s, t, y, g, **SETTINGS))


@pytest.mark.parametrize("against", ["teacher", "label"])
def test_gradient_flows_into_student_and_helper_alone(against: Any) -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    torch.autograd.gradcheck(
        lambda s, g: budget_penalty(s, teacher_BC, targets_B, g, against=against, **SETTINGS), (student_BC, helper_B)
    )
    assert_teacher_is_spared(lambda s, t, y, g: budget_penalty(s, t, y, g, against=against, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("helper", [0.0, 1.0])
def test_is_finite_at_extreme_logits(dtype: torch.dtype, helper: float) -> None:
    inputs = extreme_inputs(dtype, helper)
    assert_finite(budget_penalty(*inputs, **{**SETTINGS, "max_ce": 1e9}), inputs[0], inputs[3])


def test_refuses_unknown_values() -> None:
    inputs = random_inputs()
    with pytest.raises(ConfigError, match="against must be 'teacher' or 'label', got 'labels'; nearest: label"):
        budget_penalty(*inputs, against="labels", **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"max_ce must be above 0, got 0\.0"):
        budget_penalty(*inputs, **{**SETTINGS, "max_ce": 0.0})
    with pytest.raises(ConfigError, match="top_k must be at least 1, got 0"):
        budget_penalty(*inputs, **{**SETTINGS, "top_k": 0})
