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
from disk_kd.losses import gce_loss, kd_loss

SETTINGS = {"power": 0.3, "temperature": 2.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"power": 0.3, "temperature": 2.0},
        7.095315573095934,
        0.1553223392330629,
        [
            -0.010631155025202843,
            0.04154607835000645,
            0.022853655419067264,
            0.0029955737797124674,
            -0.0010017294358257655,
            -0.018214241812086775,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"power": 0.7, "temperature": 1.0},
        1.1053005341786926,
        0.022622466857893212,
        [
            0.003429133390341711,
            0.0025413579878086506,
            -2.5458419075594745e-05,
            -0.0006163807381995835,
            -0.00640471854139766,
            -0.0004459272144854129,
        ],
    ),
]


def slow_gce(student_BC: np.ndarray, teacher_BC: np.ndarray, power: float, temperature: float) -> float:
    total = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        s, t = softmax_row(student, temperature), softmax_row(teacher, temperature)
        for s_c, t_c in zip(s, t, strict=True):
            total += t_c * (1 - s_c**power) / power
    return temperature**2 * total / len(student_BC)


@pytest.mark.parametrize("power", [0.1, 0.7, 1.0])
def test_agrees_with_slow_loop(power: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_gce(*numpy_of(student_BC, teacher_BC), power, 2.0)
    found = gce_loss(student_BC, teacher_BC, power=power, temperature=2.0)
    assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = gce_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_has_the_gradient_of_kd_towards_power_zero() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    loss = gce_loss(student_BC, teacher_BC, power=1e-7, temperature=2.0)
    kd = kd_loss(student_BC, teacher_BC, student_temperature=2.0, teacher_temperature=2.0)
    found, expected = (torch.autograd.grad(value, student_BC) for value in (loss, kd))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_is_bounded_and_least_where_the_student_is_surer() -> None:
    far = gce_loss(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), power=0.5, temperature=1.0)
    assert far.item() == pytest.approx(2.0)
    t_BC = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    student_BC = (t_BC.log() / (1 - 0.4)).requires_grad_()
    loss = gce_loss(student_BC, t_BC.log(), power=0.4, temperature=1.0)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    torch.testing.assert_close(gradient_BC, torch.zeros_like(gradient_BC))


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: gce_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: gce_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: gce_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(gce_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        gce_loss(student_BC, teacher_BC, **{**SETTINGS, "temperature": temperature})


def test_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        gce_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)


@pytest.mark.parametrize("power", [0.0, -0.1, 1.1, float("nan")])
def test_refuses_power(power: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="power must be above 0 and at most 1, got"):
        gce_loss(student_BC, teacher_BC, power=power, temperature=1.0)
