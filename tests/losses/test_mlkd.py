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
from disk_kd.losses.mlkd import mlkd_loss

SETTINGS = {"instance_weight": 1.5, "batch_weight": 0.7, "class_weight": 2.0, "temperatures": (1.0, 3.0, 4.5)}
EQUAL = {"instance_weight": 1.0, "batch_weight": 1.0, "class_weight": 1.0}


def slow_mlkd(student_BC: np.ndarray, teacher_BC: np.ndarray) -> float:
    total, (images, classes) = 0.0, student_BC.shape
    for temperature in (1.0, 3.0, 4.5):
        s = [softmax_row(row, temperature) for row in student_BC]
        t = [softmax_row(row, temperature) for row in teacher_BC]
        for i in range(images):
            kl = sum(t[i][c] * np.log(t[i][c] / s[i][c]) for c in range(classes))
            total += 1.5 * temperature**2 * kl / images
            for j in range(images):
                gap = sum(s[i][c] * s[j][c] - t[i][c] * t[j][c] for c in range(classes))
                total += 0.7 * gap**2 / images
        for c in range(classes):
            for d in range(classes):
                gap = sum(s[i][c] * s[i][d] - t[i][c] * t[i][d] for i in range(images))
                total += 2.0 * gap**2 / classes
    return total


def test_agrees_with_slow_loop() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_mlkd(*numpy_of(student_BC, teacher_BC))
    assert mlkd_loss(student_BC, teacher_BC, **SETTINGS).item() == pytest.approx(expected, abs=1e-11)


# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {**EQUAL, "temperatures": (2.0, 3.0, 4.0, 5.0, 6.0)},
        24.564079410015996,
        2.014456390843467,
        [-0.1860055899226428, 0.402848939007858, 0.3032995298346164],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        SETTINGS,
        23.68313662244453,
        2.1619778028536776,
        [0.4561704268386113, 0.3777543069084625, -0.1084723628758479],
    ),
]


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = mlkd_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :3].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_kd_at_the_level_of_instances() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    alone = {"instance_weight": 1.0, "batch_weight": 0.0, "class_weight": 0.0}
    expected = sum(kd_loss(student_BC, teacher_BC, student_temperature=t, teacher_temperature=t) for t in (2.0, 5.0))
    torch.testing.assert_close(mlkd_loss(student_BC, teacher_BC, **alone, temperatures=[2.0, 5.0]), expected)


def test_relations_alone_ignore_which_class_is_which_in_both() -> None:
    """Images relate alike if all classes are renamed in the student alone; classes do not."""
    student_BC, *_ = random_inputs()
    renamed_BC = student_BC.detach()[:, [3, 0, 7, 1, 6, 2, 5, 4]]
    batch = {"instance_weight": 0.0, "batch_weight": 1.0, "class_weight": 0.0, "temperatures": [3.0]}
    assert mlkd_loss(student_BC, renamed_BC, **batch).item() == pytest.approx(0, abs=1e-15)
    classes = {**batch, "batch_weight": 0.0, "class_weight": 1.0}
    assert mlkd_loss(student_BC, renamed_BC, **classes).item() > 1e-3
    assert mlkd_loss(student_BC, student_BC.detach().flip(0), **classes).item() == pytest.approx(0, abs=1e-15)


def test_is_zero_at_teacher() -> None:
    student_BC, *_ = random_inputs()
    assert mlkd_loss(student_BC, student_BC, **SETTINGS).item() == pytest.approx(0, abs=1e-12)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: mlkd_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: mlkd_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: mlkd_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(mlkd_loss(student_BC, teacher_BC, **SETTINGS), student_BC)


def test_autocast_changes_nothing() -> None:
    student_BC, teacher_BC, *_ = (x.detach().float() for x in random_inputs())
    expected = mlkd_loss(student_BC, teacher_BC, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mlkd_loss(student_BC, teacher_BC, **SETTINGS), expected)


@pytest.mark.parametrize("temperatures", [(2.0, 0.0), (float("nan"),), (float("inf"), 1.0), (-1.0,)])
def test_refuses_temperatures(temperatures: tuple[float, ...]) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="each of the temperatures must be finite and above 0, got"):
        mlkd_loss(student_BC, teacher_BC, **EQUAL, temperatures=temperatures)


def test_refuses_no_temperature_and_other_classes() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match=r"temperatures must hold at least one number, got none; try \[2, 3, 4, 5, 6"):
        mlkd_loss(student_BC, teacher_BC, **EQUAL, temperatures=[])
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        mlkd_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)
