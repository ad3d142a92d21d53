from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_cases import (
    assert_finite,
    assert_teacher_is_spared,
    extreme_inputs,
    golden_inputs,
    numpy_of,
    random_inputs,
    softmax_row,
)

from disk_kd.errors import ConfigError
from disk_kd.losses import kd_loss
from disk_kd.losses.skd import skd_loss

SETTINGS = {"instance_weight": 1.5, "direction_weight": 0.7, "temperature": 3.0, "tikhonov": 0.1}
RELEASE = {"instance_weight": 1.0, "direction_weight": 1.0, "temperature": 4.0, "tikhonov": 0.1}
DIRECTION = {**RELEASE, "instance_weight": 0.0}


def slow_cosines(logits_BC: np.ndarray) -> np.ndarray:
    rows = [row / np.sqrt(sum(row**2)) for row in logits_BC]
    return np.array([[sum(a * b) for b in rows] for a in rows])


def slow_direction(student_BC: np.ndarray, teacher_BC: np.ndarray, tikhonov: float) -> float:
    """By the inverse of the covariance, where the loss has Cholesky's factor."""
    d = slow_cosines(student_BC) - slow_cosines(teacher_BC)
    images = len(d)
    mean = sum(d) / images
    sigma = np.zeros((images, images))
    for row in d:
        for j in range(images):
            for k in range(images):
                sigma[j, k] += (row[j] - mean[j]) * (row[k] - mean[k]) / (images - 1)
    inverse = np.linalg.inv(sigma + tikhonov * np.eye(images))
    return sum(np.sqrt(row @ inverse @ row) for row in d) / images


def slow_skd(student_BC: np.ndarray, teacher_BC: np.ndarray) -> float:
    kl = 0.0
    for student, teacher in zip(student_BC, teacher_BC, strict=True):
        s, t = softmax_row(student, 3.0), softmax_row(teacher, 3.0)
        kl += sum(t * np.log(t / s)) / len(student_BC)
    return 1.5 * 9.0 * kl + 0.7 * slow_direction(student_BC, teacher_BC, 0.1)


@pytest.mark.parametrize(("batch", "classes"), [(5, 8), (2, 3), (9, 4)])
def test_agrees_with_slow_loop(batch: int, classes: int) -> None:
    student_BC, teacher_BC, *_ = random_inputs(batch, classes)
    expected = slow_skd(*numpy_of(student_BC, teacher_BC))
    assert skd_loss(student_BC, teacher_BC, **SETTINGS).item() == pytest.approx(expected, abs=1e-11)


# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        RELEASE,
        8.488354102738327,
        0.5161798224703457,
        [0.05802313727078755, 0.10929551268814625, -0.016933509081419995],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        SETTINGS,
        13.379287624762979,
        0.777401824806893,
        [0.17776318262538277, 0.13738257963856598, -0.052437430102522505],
    ),
]


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = skd_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :3].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_kd_without_directions() -> None:
    student_BC, teacher_BC, *_ = random_inputs(1)
    kd = kd_loss(student_BC, teacher_BC, student_temperature=3.0, teacher_temperature=3.0)
    loss = skd_loss(student_BC, teacher_BC, **{**SETTINGS, "direction_weight": 0.0})
    torch.testing.assert_close(loss, 1.5 * kd)


def test_is_zero_at_teacher_without_gradient() -> None:
    student_BC, *_ = random_inputs()
    loss = skd_loss(student_BC, student_BC, **SETTINGS)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient_BC.abs().max().item() < 1e-12


def test_directions_ignore_how_long_rows_are_and_the_order_of_classes_and_images() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = skd_loss(student_BC, teacher_BC, **DIRECTION)
    length_B1 = torch.arange(1.0, 6.0)[:, None]
    torch.testing.assert_close(skd_loss(length_B1 * student_BC, teacher_BC / length_B1, **DIRECTION), expected)
    order_C, order_B = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4]), torch.tensor([2, 0, 4, 1, 3])
    renamed = student_BC[order_B][:, order_C], teacher_BC[order_B][:, order_C]
    torch.testing.assert_close(skd_loss(*renamed, **DIRECTION), expected)
    assert skd_loss(student_BC + 1, teacher_BC, **DIRECTION).item() != pytest.approx(expected.item(), rel=1e-3)


def test_a_large_diagonal_leaves_the_plain_norm() -> None:
    student_BC, teacher_BC, *_ = (x.detach() for x in random_inputs())
    d_BB = torch.from_numpy(slow_cosines(student_BC.numpy()) - slow_cosines(teacher_BC.numpy()))
    loss = skd_loss(student_BC, teacher_BC, **{**DIRECTION, "tikhonov": 1e8})
    assert 1e4 * loss.item() == pytest.approx(d_BB.norm(dim=1).mean().item(), rel=1e-6)


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: skd_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: skd_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tikhonov", [0.1, 1e-4])
def test_is_finite_at_extreme_logits(dtype: torch.dtype, tikhonov: float) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(skd_loss(student_BC, teacher_BC, **{**SETTINGS, "tikhonov": tikhonov}), student_BC)


def test_float32_agrees_with_float64_in_a_large_batch() -> None:
    student_BC, teacher_BC, *_ = random_inputs(200, 10)
    settings = {**DIRECTION, "tikhonov": 1e-4}
    expected = skd_loss(student_BC, teacher_BC, **settings).item()
    assert skd_loss(student_BC.float(), teacher_BC.float(), **settings).item() == pytest.approx(expected, rel=1e-3)


def test_autocast_changes_nothing() -> None:
    student_BC, teacher_BC, *_ = (x.detach().float() for x in random_inputs())
    expected = skd_loss(student_BC, teacher_BC, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(skd_loss(student_BC, teacher_BC, **SETTINGS), expected)


def test_an_image_without_direction_gets_no_gradient_from_it() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    student_BC.data[1] = 0
    (gradient_BC,) = torch.autograd.grad(skd_loss(student_BC, teacher_BC, **DIRECTION), student_BC)
    assert not gradient_BC[1].any()
    assert gradient_BC[0].any()


def test_a_masked_class_has_no_part_in_the_direction() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    masked_BC = torch.cat([teacher_BC, torch.full((5, 2), -math.inf, dtype=torch.float64)], dim=1)
    wider_BC = torch.cat([student_BC.detach(), torch.randn(5, 2, dtype=torch.float64)], dim=1)
    expected = skd_loss(student_BC, teacher_BC, **DIRECTION)
    torch.testing.assert_close(skd_loss(wider_BC, masked_BC, **DIRECTION), expected)
    stored_BC = masked_BC.clamp(min=-65504)  # as half precision keeps it
    torch.testing.assert_close(skd_loss(wider_BC, stored_BC, **DIRECTION), expected)


@pytest.mark.parametrize("name", ["temperature", "tikhonov"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_settings(name: str, value: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match=f"{name} must be finite and above 0, got"):
        skd_loss(student_BC, teacher_BC, **{**SETTINGS, name: value})


def test_refuses_a_batch_of_one_and_other_classes() -> None:
    with pytest.raises(ConfigError, match="SKD's relation of directions needs a batch of at least 2 images, got 1"):
        skd_loss(torch.zeros(1, 10), torch.zeros(1, 10), **SETTINGS)
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        skd_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)
