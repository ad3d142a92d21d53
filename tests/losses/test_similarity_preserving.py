from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, numpy_of
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.similarity_preserving import similarity_preserving_loss


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    """A student's map and a teacher's of another shape."""
    i = torch.arange(batch * 3 * 2 * 2, dtype=torch.float64).view(batch, 3, 2, 2)
    j = torch.arange(batch * 5 * 3 * 3, dtype=torch.float64).view(batch, 5, 3, 3)
    return torch.sin(1.3 * i).requires_grad_(), torch.cos(0.9 * j + 1) + 0.3


def slow_similarities(features: np.ndarray) -> np.ndarray:
    rows = features.reshape(len(features), -1)
    similarity = np.array([[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows])
    return np.array([row / np.sqrt(sum(row**2)) for row in similarity])


def slow_similarity_preserving(student: np.ndarray, teacher: np.ndarray) -> float:
    difference = slow_similarities(student) - slow_similarities(teacher)
    return float((difference**2).sum() / len(student) ** 2)


def test_agrees_with_slow_loop() -> None:
    student, teacher = inputs()
    expected = slow_similarity_preserving(*numpy_of(student, teacher))
    assert similarity_preserving_loss(student, teacher).item() == pytest.approx(expected, abs=1e-12)
    pooled = student.mean((2, 3)), teacher.mean((2, 3))
    expected = slow_similarity_preserving(*numpy_of(*pooled))
    assert similarity_preserving_loss(*pooled).item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    student, teacher = inputs()
    loss = similarity_preserving_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0177468569728, abs=1e-9)
    assert gradient.norm().item() == pytest.approx(0.00747870299119, abs=1e-9)


def test_ignores_rotation_and_scale_of_features_and_order_of_images() -> None:
    student, teacher = (x.detach() for x in inputs())
    expected = similarity_preserving_loss(student, teacher)
    generator = torch.Generator().manual_seed(0)
    rotation_FF = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    rotated_BF = 7 * student.flatten(1) @ rotation_FF
    torch.testing.assert_close(similarity_preserving_loss(rotated_BF, teacher), expected)
    assert similarity_preserving_loss(rotated_BF, student).item() == pytest.approx(0, abs=1e-15)
    order_B = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(similarity_preserving_loss(student[order_B], teacher[order_B]), expected)


def test_refuses_a_batch_of_one() -> None:
    with pytest.raises(ConfigError, match="similarity preserving needs a batch of at least 2 images, got 1; raise the"):
        similarity_preserving_loss(*inputs(batch=1))


def test_gradient_flows_into_student_alone() -> None:
    student, teacher = inputs()
    torch.autograd.gradcheck(lambda s: similarity_preserving_loss(s, teacher), student)
    teacher.requires_grad_()
    similarity_preserving_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_image_of_zeros_has_a_row_of_zeros_and_no_gradient() -> None:
    student, teacher = inputs()
    student.data[1] = 0
    loss = similarity_preserving_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[0].norm() > 1e-3
    assert gradient.norm() < 1
    others = [0, 2, 3]
    row = slow_similarities(teacher.numpy())[1]
    cut = slow_similarities(student.detach().numpy()[others]), slow_similarities(teacher.numpy())[others]
    whole = np.insert(cut[0], 1, 0.0, axis=1)
    assert loss.item() == pytest.approx(((row**2).sum() + ((whole - cut[1]) ** 2).sum()) / 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1e4])
def test_is_finite_at_extreme_values(dtype: torch.dtype, scale: float) -> None:
    student, teacher = inputs()
    student = (scale * student.detach()).to(dtype).requires_grad_()
    assert_finite(similarity_preserving_loss(student, teacher.to(dtype)), student)
    assert_finite(similarity_preserving_loss(student, 0 * teacher.to(dtype)), student)


def test_stays_in_float32_under_autocast() -> None:
    student, teacher = (x.detach().float() for x in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        loss = similarity_preserving_loss(student, teacher)
    torch.testing.assert_close(loss, similarity_preserving_loss(student, teacher))


def test_compiles_in_one_graph() -> None:
    student, teacher = inputs()
    compiled = torch.compile(similarity_preserving_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), similarity_preserving_loss(student, teacher))
    gradient = torch.autograd.grad(compiled(student, teacher), student)
    torch.testing.assert_close(gradient, torch.autograd.grad(similarity_preserving_loss(student, teacher), student))


def test_refuses_other_batches() -> None:
    with pytest.raises(ConfigError, match=r"of one batch, got \(2, 8\) and \(3, 8\); give both models the same images"):
        similarity_preserving_loss(torch.zeros(2, 8), torch.zeros(3, 8))
    with pytest.raises(ConfigError, match=r"must be \(batch, ...\) of one batch, got \(2,\) and \(2,\)"):
        similarity_preserving_loss(torch.zeros(2), torch.zeros(2))
