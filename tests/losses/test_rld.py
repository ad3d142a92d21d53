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
from disk_kd.losses import dkd_loss, rld_loss

SETTINGS = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
        24.718430054666936,
        3.47971203225539,
        [
            -0.09519605906428717,
            0.8463329146611986,
            0.7347883388379612,
            0.02241437011532738,
            -0.5153469989394208,
            0.010853385726581788,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"alpha": 2.0, "beta": 0.5, "temperature": 1.0},
        4.013269985626021,
        0.5019910447914421,
        [
            0.0902561621307973,
            0.06699716112032374,
            -0.023329679983932636,
            -0.22738498633146237,
            0.0039075228615145265,
            0.04982235178358784,
        ],
    ),
]


def slow_binary(p: float, q: float) -> float:
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def slow_rld(
    student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray, alpha: float, beta: float, temperature: float
) -> float:
    total = 0.0
    for student, teacher, y in zip(student_BC, teacher_BC, targets_B, strict=True):
        s, t = softmax_row(student, temperature), softmax_row(teacher, temperature)
        total += alpha * slow_binary(max(t), s[y])
        kept = [c for c in range(len(teacher)) if teacher[c] < teacher[y]]
        if kept:
            s_kept, t_kept = softmax_row(student[kept], temperature), softmax_row(teacher[kept], temperature)
            total += beta * sum(p * np.log(p / q) for p, q in zip(t_kept, s_kept, strict=True))
    return temperature**2 * total / len(student_BC)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_slow_loop(seed: int) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs(seed=seed)
    expected = slow_rld(*numpy_of(student_BC, teacher_BC, targets_B), 1.0, 8.0, 4.0)
    assert rld_loss(student_BC, teacher_BC, targets_B, **SETTINGS).item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, targets_B, _ = golden_inputs(case)
    loss = rld_loss(student_BC, teacher_BC, targets_B, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_dkd_where_the_teacher_is_right_and_zero_at_it() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    right_B = teacher_BC.argmax(1)
    dkd = dkd_loss(student_BC, teacher_BC, right_B, **SETTINGS)
    torch.testing.assert_close(rld_loss(student_BC, teacher_BC, right_B, **SETTINGS), dkd)
    assert rld_loss(teacher_BC, teacher_BC, right_B, **SETTINGS).item() == pytest.approx(0, abs=1e-12)


def test_a_wrong_teacher_asks_its_confidence_for_the_label() -> None:
    """At the loss's minimum the student is as sure of the label as the teacher is of another class."""
    teacher_BC = torch.tensor([[2.0, 4.0, 1.0, 0.0]], dtype=torch.float64)
    student_BC = torch.tensor([[4.0, 2.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = rld_loss(student_BC, teacher_BC, torch.tensor([0]), **SETTINGS)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient_BC, torch.zeros_like(gradient_BC), atol=1e-12, rtol=0)


def test_a_class_that_the_teacher_ranks_as_high_as_the_label_is_left_out() -> None:
    teacher_BC = torch.tensor([[2.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    student_BC = torch.tensor([[0.3, 0.1, 0.7, 0.2]], dtype=torch.float64)
    only = {"alpha": 0.0, "beta": 1.0, "temperature": 1.0}
    moved_BC = student_BC + torch.tensor([5.0, -3.0, 0.0, 0.0])
    losses = [rld_loss(s, teacher_BC, torch.tensor([0]), **only) for s in (student_BC, moved_BC)]
    assert losses[0] > 0.01
    torch.testing.assert_close(*losses)


def test_where_the_label_is_the_teachers_last_class_nothing_is_left() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    last_B = teacher_BC.argmin(1)
    loss = rld_loss(student_BC, teacher_BC, last_B, alpha=0.0, beta=1.0, temperature=1.0)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == 0
    assert not gradient_BC.any()


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: rld_loss(s, t, y, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    torch.autograd.gradcheck(lambda s: rld_loss(s, teacher_BC, targets_B, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: rld_loss(s, t, y, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, targets_B, _ = extreme_inputs(dtype, 0.0)
    assert_finite(rld_loss(student_BC, teacher_BC, targets_B, **SETTINGS), student_BC)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        rld_loss(student_BC, teacher_BC, targets_B, **{**SETTINGS, "temperature": temperature})


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        rld_loss(torch.zeros(2, 10), torch.zeros(2, 100), torch.zeros(2, dtype=torch.int64), **SETTINGS)
    with pytest.raises(ConfigError, match=r"targets must be int64 class indices of shape \(2,\)"):
        rld_loss(torch.zeros(2, 10), torch.zeros(2, 10), torch.zeros(2, 10), **SETTINGS)
    with pytest.raises(ConfigError, match="got 1 class; give at least 2 classes"):
        rld_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), **SETTINGS)
