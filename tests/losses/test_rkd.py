from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, numpy_of
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.rkd import rkd_loss

WEIGHTS = {"distance_weight": 25.0, "angle_weight": 50.0}
DISTANCE = {"distance_weight": 1.0, "angle_weight": 0.0}
ANGLE = {"distance_weight": 0.0, "angle_weight": 1.0}


def inputs(batch: int = 5) -> tuple[Tensor, Tensor]:
    """The student's first row lies far from the others, so that distances and angles differ by more than 1."""
    i = torch.arange(batch * 4, dtype=torch.float64).view(batch, 4)
    j = torch.arange(batch * 6, dtype=torch.float64).view(batch, 6)
    student = torch.sin(2.2 * i)
    student[0] *= 20
    return student.requires_grad_(), torch.cos(0.9 * j + 1)


def slow_distances(rows: np.ndarray) -> np.ndarray:
    distances = np.array([[np.sqrt(((x - y) ** 2).sum()) for y in rows] for x in rows])
    return distances / distances[distances > 0].mean()


def slow_angles(rows: np.ndarray) -> np.ndarray:
    """[i, j, k]: the cosine at j, of unit vectors from j to i and to k."""
    batch = len(rows)
    cosines = np.zeros((batch, batch, batch))
    for i, j, k in np.ndindex(batch, batch, batch):
        to_i, to_k = rows[i] - rows[j], rows[k] - rows[j]
        if to_i.any() and to_k.any():
            cosines[i, j, k] = to_i @ to_k / np.sqrt((to_i @ to_i) * (to_k @ to_k))
    return cosines


def slow_huber(x: np.ndarray, y: np.ndarray) -> float:
    gap = np.abs(x - y)
    return float(np.where(gap <= 1, gap**2 / 2, gap - 0.5).mean())


def slow_rkd(student: np.ndarray, teacher: np.ndarray, distance_weight: float, angle_weight: float) -> float:
    distance = slow_huber(slow_distances(student), slow_distances(teacher))
    return distance_weight * distance + angle_weight * slow_huber(slow_angles(student), slow_angles(teacher))


@pytest.mark.parametrize("weights", [WEIGHTS, DISTANCE, ANGLE])
def test_agrees_with_slow_loop(weights: dict[str, float]) -> None:
    student, teacher = inputs()
    expected = slow_rkd(*numpy_of(student, teacher), **weights)
    assert rkd_loss(student, teacher, **weights).item() == pytest.approx(expected, abs=1e-12)


def test_both_sides_of_huber_are_met() -> None:
    student, teacher = numpy_of(*inputs())
    for relation in (slow_distances, slow_angles):
        gap = np.abs(relation(student) - relation(teacher))
        assert gap.min() < 1 < gap.max()


def test_agrees_with_frozen_numbers() -> None:
    student, teacher = inputs()
    loss = rkd_loss(student, teacher, **WEIGHTS)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(17.2650325535, abs=1e-9)
    assert gradient.norm().item() == pytest.approx(1.70774887341, abs=1e-9)


def test_ignores_shift_rotation_scale_and_order() -> None:
    student, teacher = (x.detach() for x in inputs())
    expected = rkd_loss(student, teacher, **WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    rotation_FF = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    moved = 7 * student @ rotation_FF + torch.arange(4.0)
    torch.testing.assert_close(rkd_loss(moved, teacher, **WEIGHTS), expected)
    assert rkd_loss(moved, student, **WEIGHTS).item() == pytest.approx(0, abs=1e-12)
    order_B = torch.tensor([2, 0, 3, 1, 4])
    torch.testing.assert_close(rkd_loss(student[order_B], teacher[order_B], **WEIGHTS), expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_refuses_a_batch_in_which_nothing_can_differ(batch: int) -> None:
    with pytest.raises(ConfigError, match=f"relational KD needs a batch of at least 3 images, got {batch}; raise the"):
        rkd_loss(*inputs(batch), **WEIGHTS)


def test_gradient_flows_into_student_alone() -> None:
    student, teacher = inputs()
    torch.autograd.gradcheck(lambda s: rkd_loss(s, teacher, **WEIGHTS), student)
    teacher.requires_grad_()
    rkd_loss(student, teacher, **WEIGHTS).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_coincide_count_as_the_slow_loop_says(dtype: torch.dtype) -> None:
    student, teacher = (x.detach().to(dtype) for x in inputs())
    student[3] = student[0]
    teacher[4] = teacher[1]
    student.requires_grad_()
    loss = rkd_loss(student, teacher, **WEIGHTS)
    expected = slow_rkd(*(x.astype(np.float64) for x in numpy_of(student, teacher)), **WEIGHTS)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert_finite(loss, student)
    assert torch.autograd.grad(rkd_loss(student, teacher, **WEIGHTS), student)[0].norm() < 100


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_keeps_the_angles_of_near_rows(offset: float) -> None:
    """A far row and two near ones, far from the origin: a product of matrices would lose their angles."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) * 2**-6
    rows = torch.cat([corners, torch.tensor([[8.0, 8.0]])]) + offset
    teacher = inputs(4)[1].float()
    expected = slow_rkd(rows.double().numpy(), teacher.double().numpy(), **WEIGHTS)
    assert rkd_loss(rows, teacher, **WEIGHTS).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
@pytest.mark.parametrize("gap", [0.0, 1e-20, 1e-10, 1e-5, 1e-2])
def test_is_finite_at_extreme_values(dtype: torch.dtype, scale: float, gap: float) -> None:
    student, teacher = (x.detach().to(dtype) for x in inputs())
    student *= scale
    student[:2] = 0
    student[1, 0] = gap * scale
    student.requires_grad_()
    assert_finite(rkd_loss(student, teacher, **WEIGHTS), student)
    assert_finite(rkd_loss(student, 0 * teacher, **WEIGHTS), student)


def test_stays_in_float32_under_autocast() -> None:
    student, teacher = (x.detach().float() for x in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        loss = rkd_loss(student, teacher, **WEIGHTS)
    torch.testing.assert_close(loss, rkd_loss(student, teacher, **WEIGHTS))


def test_compiles_in_one_graph() -> None:
    student, teacher = inputs()
    loss = partial(rkd_loss, **WEIGHTS)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), loss(student, teacher))
    gradient = torch.autograd.grad(compiled(student, teacher), student)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(student, teacher), student))


def test_refuses_maps_and_other_batches() -> None:
    with pytest.raises(ConfigError, match=r"of one batch, got \(2, 3, 4, 4\) and \(2, 8\); give pooled features"):
        rkd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8), **WEIGHTS)
    with pytest.raises(ConfigError, match=r"of one batch, got \(2, 8\) and \(3, 8\)"):
        rkd_loss(torch.zeros(2, 8), torch.zeros(3, 8), **WEIGHTS)
