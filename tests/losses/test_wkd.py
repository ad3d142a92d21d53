from __future__ import annotations

from typing import Any

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
from scipy.optimize import linprog
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses import class_costs, classifier_relations, nkd_loss, wkd_loss

SETTINGS: dict[str, Any] = {"weight": 30.0, "temperature": 2.0}


def costs_of(classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weights_CF = torch.randn(classes, 6, generator=generator, dtype=torch.float64)
    return class_costs(classifier_relations(weights_CF), sharpness=1.0)


def slow_transport(s: np.ndarray, t: np.ndarray, costs: np.ndarray, smoothing: float, iterations: int) -> float:
    """Sinkhorn's algorithm, entry by entry, on the classes that are left."""
    classes = range(len(s))
    kernel = [[np.exp(-costs[j][k] / smoothing) for k in classes] for j in classes]
    u, v = [1 / len(s)] * len(s), [0.0] * len(s)
    for _ in range(iterations):
        v = [t[k] / sum(kernel[j][k] * u[j] for j in classes) for k in classes]
        u = [s[j] / sum(kernel[j][k] * v[k] for k in classes) for j in classes]
    return sum(u[j] * kernel[j][k] * v[k] * costs[j][k] for j in classes for k in classes)


def slow_wkd(
    student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray | None, costs: np.ndarray, iterations: int
) -> float:
    total = 0.0
    for image, (student, teacher) in enumerate(zip(student_BC, teacher_BC, strict=True)):
        left = list(range(len(student)))
        if targets_B is not None:
            y = targets_B[image]
            total -= softmax_row(teacher, 1.0)[y] * np.log(softmax_row(student, 1.0)[y])
            left.remove(y)
        s, t = softmax_row(student[left], 2.0), softmax_row(teacher[left], 2.0)
        total += 30.0 * slow_transport(s, t, costs[np.ix_(left, left)], 0.05, iterations)
    return total / len(student_BC)


@pytest.mark.parametrize("iterations", [1, 10])
@pytest.mark.parametrize("separate", [True, False])
def test_agrees_with_slow_loop(iterations: int, separate: bool) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    inputs = numpy_of(student_BC, teacher_BC, targets_B, costs_of(8))
    expected = slow_wkd(inputs[0], inputs[1], inputs[2] if separate else None, inputs[3], iterations)
    found = wkd_loss(
        student_BC, teacher_BC, targets_B if separate else None, costs_of(8), **SETTINGS, iterations=iterations
    )
    assert found.item() == pytest.approx(expected, abs=1e-10)


def test_agrees_with_frozen_numbers() -> None:
    student_BC, teacher_BC, targets_B, _ = golden_inputs({"B": 6, "C": 10, "seed": 0})
    place_C = torch.arange(10, dtype=torch.float64)
    costs_CC = 1 - torch.exp(-0.3 * (place_C[:, None] - place_C).abs())
    loss = wkd_loss(student_BC, teacher_BC, targets_B, costs_CC, **SETTINGS)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(8.638553430676437, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(0.7948445665460193, abs=1e-9)


def test_nears_the_least_cost_of_the_linear_program() -> None:
    """Against another solver, with little entropy and many steps; more entropy costs more."""
    student_BC, teacher_BC, *_ = random_inputs(batch=1, classes=5)
    s_C, t_C = (x.softmax(1)[0].detach().numpy() for x in (student_BC, teacher_BC))
    sums = [np.kron(np.eye(5), np.ones(5)), np.kron(np.ones(5), np.eye(5))]
    costs_CC = costs_of(5)
    least = linprog(costs_CC.flatten().numpy(), A_eq=np.vstack(sums), b_eq=np.concatenate([s_C, t_C])).fun
    found = [
        wkd_loss(
            student_BC, teacher_BC, None, costs_CC, weight=1.0, temperature=1.0, smoothing=smoothing, iterations=2000
        ).item()
        for smoothing in (0.025, 0.1)
    ]
    assert least - 1e-9 <= found[0] < found[1]
    assert found[0] == pytest.approx(least, abs=0.01)


def test_the_label_counts_in_the_first_term_alone() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    label = wkd_loss(student_BC, teacher_BC, targets_B, costs_of(8), weight=0.0, temperature=2.0)
    torch.testing.assert_close(label, nkd_loss(student_BC, teacher_BC, targets_B, gamma=0.0, temperature=1.0))
    moved_BC = student_BC.scatter_add(1, targets_B[:, None], torch.full((5, 1), 3.0, dtype=torch.float64))
    transports = [
        wkd_loss(s, teacher_BC, targets_B, costs_of(8), **SETTINGS)
        - wkd_loss(s, teacher_BC, targets_B, costs_of(8), weight=0.0, temperature=2.0)
        for s in (student_BC, moved_BC)
    ]
    torch.testing.assert_close(*transports)


def test_a_mistake_among_like_classes_costs_less() -> None:
    costs_CC = torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]])
    teacher_BC = torch.tensor([[9.0, 0.0, 0.0]])
    like, unlike = (
        wkd_loss(torch.tensor([row]), teacher_BC, None, costs_CC, **SETTINGS)
        for row in ([0.0, 9.0, 0.0], [0.0, 0.0, 9.0])
    )
    assert like < 0.2 * unlike


def test_without_costs_nothing_is_transported() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    free = torch.zeros(8, 8, dtype=torch.float64)
    assert wkd_loss(student_BC, teacher_BC, None, free, **SETTINGS) == 0


def test_ignores_shifts_and_class_order() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    costs_CC = costs_of(8)
    expected = wkd_loss(student_BC, teacher_BC, targets_B, costs_CC, **SETTINGS)
    shift_B1 = torch.arange(5.0)[:, None]
    shifted = wkd_loss(student_BC + shift_B1, teacher_BC - 2 * shift_B1, targets_B, costs_CC, **SETTINGS)
    torch.testing.assert_close(shifted, expected)
    order_C = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    renamed = (student_BC[:, order_C], teacher_BC[:, order_C], order_C.argsort()[targets_B])
    found = wkd_loss(*renamed, costs_CC[order_C][:, order_C], **SETTINGS)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("separate", [True, False])
def test_gradient_flows_into_student_alone(separate: bool) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    given = targets_B if separate else None
    torch.autograd.gradcheck(lambda s: wkd_loss(s, teacher_BC, given, costs_of(8), **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: wkd_loss(s, t, given, costs_of(8), **SETTINGS))
    costs_CC = costs_of(8).requires_grad_()
    wkd_loss(student_BC, teacher_BC, given, costs_CC, **SETTINGS).backward()
    assert costs_CC.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("smoothing", [0.025, 0.05])
@pytest.mark.parametrize("separate", [True, False])
def test_is_finite_at_extreme_logits_and_costs(dtype: torch.dtype, smoothing: float, separate: bool) -> None:
    student_BC, teacher_BC, targets_B, _ = extreme_inputs(dtype, 0.0)
    costs_CC = 1 - torch.eye(3)
    given = targets_B if separate else None
    loss = wkd_loss(student_BC, teacher_BC, given, costs_CC, **SETTINGS, smoothing=smoothing)
    assert_finite(loss, student_BC)


def test_half_precision_around_it_changes_nothing() -> None:
    student_BC, teacher_BC, targets_B, _ = (x.detach().float() if x.is_floating_point() else x for x in random_inputs())
    inputs = student_BC, teacher_BC, targets_B, costs_of(8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = wkd_loss(*inputs, **SETTINGS)
    torch.testing.assert_close(inside, wkd_loss(*inputs, **SETTINGS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and above 0, got"),
        ({"smoothing": 0.01}, "smoothing must be finite and at least 0.025, got 0.01"),
        ({"smoothing": float("nan")}, "smoothing must be finite and at least 0.025, got nan"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_refuses_settings(settings: dict[str, float], message: str) -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    with pytest.raises(ConfigError, match=message):
        wkd_loss(student_BC, teacher_BC, targets_B, costs_of(8), **{**SETTINGS, **settings})


def test_refuses_wrong_shapes_and_costs() -> None:
    targets_B = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        wkd_loss(torch.zeros(2, 10), torch.zeros(2, 100), targets_B, costs_of(10), **SETTINGS)
    with pytest.raises(ConfigError, match=r"costs must have shape \(10, 10\), got \(8, 8\)"):
        wkd_loss(torch.zeros(2, 10), torch.zeros(2, 10), targets_B, costs_of(8), **SETTINGS)
    with pytest.raises(ConfigError, match="got 1 class; give at least 2 classes"):
        wkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), targets_B, torch.zeros(1, 1), **SETTINGS)
