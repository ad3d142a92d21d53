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
from disk_kd.losses import kd_loss
from disk_kd.losses.dkd import dkd_loss

SETTINGS = {"alpha": 1.5, "beta": 8.0, "temperature": 3.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
        40.81609910710163,
        3.4530784133514607,
        [
            -0.0390506880687392,
            0.686135378393397,
            0.5585526332641845,
            0.08186178339750683,
            -0.2100009849849308,
            -0.47529830006935425,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"alpha": 2.0, "beta": 0.5, "temperature": 1.0},
        3.6464525332682434,
        0.44481094966183715,
        [
            0.0668696501483169,
            0.05009108980131939,
            -0.0013967567911583813,
            -0.14307520455861325,
            -0.08466519484196129,
            0.08143564697167081,
        ],
    ),
]


def slow_dkd(student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray) -> float:
    total = 0.0
    for student, teacher, y in zip(student_BC, teacher_BC, targets_B, strict=True):
        s, t = softmax_row(student, 3.0), softmax_row(teacher, 3.0)
        tckd = t[y] * np.log(t[y] / s[y]) + (1 - t[y]) * np.log((1 - t[y]) / (1 - s[y]))
        s_hat, t_hat = s / (1 - s[y]), t / (1 - t[y])
        nckd = sum(t_hat[c] * np.log(t_hat[c] / s_hat[c]) for c in range(len(t)) if c != y)
        total += 1.5 * tckd + 8.0 * nckd
    return 9.0 * total / len(student_BC)


def test_agrees_with_slow_loop() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    expected = slow_dkd(*numpy_of(student_BC, teacher_BC, targets_B))
    assert dkd_loss(student_BC, teacher_BC, targets_B, **SETTINGS).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, targets_B, _ = golden_inputs(case)
    loss = dkd_loss(student_BC, teacher_BC, targets_B, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_kd_where_beta_is_what_the_teacher_leaves_the_other_classes() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    for i, y in enumerate(targets_B.tolist()):
        row = student_BC[i : i + 1], teacher_BC[i : i + 1], targets_B[i : i + 1]
        beta = 1 - torch.softmax(teacher_BC[i] / 3, 0)[y].item()
        kd = kd_loss(*row[:2], student_temperature=3.0, teacher_temperature=3.0)
        torch.testing.assert_close(dkd_loss(*row, alpha=1.0, beta=beta, temperature=3.0), kd)


def test_parts_see_the_label_or_the_others_alone() -> None:
    student_BC, _, targets_B, _ = random_inputs()
    label_B1 = targets_B[:, None]
    lifted_BC = student_BC.detach().scatter_add(1, label_B1, torch.ones_like(label_B1, dtype=torch.float64))
    nckd = dkd_loss(student_BC, lifted_BC, targets_B, alpha=0.0, beta=1.0, temperature=3.0)
    assert nckd.item() == pytest.approx(0, abs=1e-12)
    tckd = dkd_loss(student_BC, lifted_BC, targets_B, alpha=1.0, beta=0.0, temperature=3.0)
    assert tckd.item() > 0.01


def test_two_classes_have_no_second_part() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs(classes=2)
    kd = kd_loss(student_BC, teacher_BC, student_temperature=3.0, teacher_temperature=3.0)
    loss = dkd_loss(student_BC, teacher_BC, targets_B, alpha=1.0, beta=8.0, temperature=3.0)
    torch.testing.assert_close(loss, kd)


def test_is_zero_at_teacher() -> None:
    student_BC, _, targets_B, _ = random_inputs()
    assert dkd_loss(student_BC, student_BC, targets_B, **SETTINGS).item() == pytest.approx(0, abs=1e-12)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: dkd_loss(s, t, y, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher_BC, targets_B, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: dkd_loss(s, t, y, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, targets_B, _ = extreme_inputs(dtype, 0.0)
    assert_finite(dkd_loss(student_BC, teacher_BC, targets_B, **SETTINGS), student_BC)


def test_keeps_what_rounds_away_beside_a_sure_label() -> None:
    student_BC, targets_B = torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([0])
    teacher_BC = torch.tensor([[0.0, 0.0, 0.0]])
    loss = dkd_loss(student_BC, teacher_BC, targets_B, alpha=1.0, beta=0.0, temperature=1.0)
    expected = np.log(1 / 3) / 3 + 2 / 3 * (np.log(2 / 3) + 40 - np.log(2))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        dkd_loss(student_BC, teacher_BC, targets_B, alpha=1.0, beta=8.0, temperature=temperature)


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        dkd_loss(torch.zeros(2, 10), torch.zeros(2, 100), torch.zeros(2, dtype=torch.int64), **SETTINGS)
    with pytest.raises(ConfigError, match=r"targets must be int64 class indices of shape \(2,\)"):
        dkd_loss(torch.zeros(2, 10), torch.zeros(2, 10), torch.zeros(2, 10), **SETTINGS)
    with pytest.raises(ConfigError, match="got 1 class; give at least 2 classes"):
        dkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), **SETTINGS)
