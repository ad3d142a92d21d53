"""The loss of pooled features. Legend: B batch, F features."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, numpy_of
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.feature_kd import feature_kd_loss

BOTH = {"cosine_weight": 0.7, "squared_weight": 0.4}
COSINE = {"cosine_weight": 1.0, "squared_weight": 0.0}
SQUARED = {"cosine_weight": 0.0, "squared_weight": 1.0}


def inputs(batch: int = 5, features: int = 6) -> tuple[Tensor, Tensor]:
    i = torch.arange(batch * features, dtype=torch.float64).view(batch, features)
    return torch.sin(2.2 * i).requires_grad_(), 3 * torch.cos(0.9 * i + 1)


def slow_loss(student: np.ndarray, teacher: np.ndarray, cosine_weight: float, squared_weight: float) -> float:
    angle, error = 0.0, 0.0
    unit = np.sqrt(sum(b**2 for t in teacher for b in t) / teacher.size)
    for s, t in zip(student, teacher, strict=True):
        angle += (1 - s @ t / np.sqrt((s @ s) * (t @ t))) / len(student)
        error += sum((a - b / unit) ** 2 for a, b in zip(s, t, strict=True)) / teacher.size
    return float(cosine_weight * angle + squared_weight * error)


@pytest.mark.parametrize("weights", [BOTH, COSINE, SQUARED])
def test_agrees_with_slow_loop(weights: dict[str, float]) -> None:
    student, teacher = inputs()
    expected = slow_loss(*numpy_of(student, teacher), **weights)
    assert feature_kd_loss(student, teacher, **weights).item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    student, teacher = inputs()
    loss = feature_kd_loss(student, teacher, **BOTH)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(1.31490808620231, abs=1e-9)
    assert gradient.norm().item() == pytest.approx(0.3412156967964858, abs=1e-9)


def test_is_zero_at_the_teacher_and_one_at_zeros() -> None:
    _, teacher = inputs()
    unit = teacher.square().mean().sqrt()
    assert feature_kd_loss(teacher / unit, teacher, **BOTH).item() == pytest.approx(0, abs=1e-12)
    assert feature_kd_loss(0 * teacher, teacher, **SQUARED).item() == pytest.approx(1)
    assert feature_kd_loss(-teacher, teacher, **COSINE).item() == pytest.approx(2)


def test_lengths_order_of_images_and_unit_vectors() -> None:
    student, teacher = (x.detach() for x in inputs())
    lengths = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    cosine = feature_kd_loss(student, teacher, **COSINE)
    torch.testing.assert_close(feature_kd_loss(lengths * student, teacher, **COSINE), cosine)
    both = feature_kd_loss(student, teacher, **BOTH)
    torch.testing.assert_close(feature_kd_loss(student, 9 * teacher, **BOTH), both)
    order = torch.tensor([2, 0, 3, 1, 4])
    torch.testing.assert_close(feature_kd_loss(student[order], teacher[order], **BOTH), both)
    ours, theirs = (x / x.norm(dim=1, keepdim=True) for x in (student, teacher))
    torch.testing.assert_close(feature_kd_loss(ours * 6**0.5, theirs, **SQUARED), 2 * cosine)


def test_gradient_flows_into_student_alone() -> None:
    student, teacher = inputs()
    torch.autograd.gradcheck(lambda s: feature_kd_loss(s, teacher, **BOTH), student)
    teacher.requires_grad_()
    feature_kd_loss(student, teacher, **BOTH).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1.0, 1e4])
def test_is_finite_at_extreme_values(dtype: torch.dtype, scale: float) -> None:
    student, teacher = (x.detach().to(dtype) for x in inputs())
    student = (student * scale).requires_grad_()
    assert_finite(feature_kd_loss(student, teacher, **BOTH), student)
    assert_finite(feature_kd_loss(student, scale * teacher, **BOTH), student)
    assert_finite(feature_kd_loss(student, 0 * teacher, **COSINE), student)


def test_stays_in_float32_under_autocast_and_compiles() -> None:
    student, teacher = (x.detach().float() for x in inputs())
    expected = feature_kd_loss(student, teacher, **BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(feature_kd_loss(student, teacher, **BOTH), expected)
    compiled = torch.compile(partial(feature_kd_loss, **BOTH), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), expected)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError, match=r"of one shape, got \(2, 8\) and \(2, 6\); project the student's"):
        feature_kd_loss(torch.zeros(2, 8), torch.zeros(2, 6), **BOTH)
    with pytest.raises(ConfigError, match=r"of one shape, got \(2, 3, 4, 4\) and"):
        feature_kd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), **BOTH)
