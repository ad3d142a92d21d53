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
from disk_kd.losses.dist import dist_loss

SETTINGS = {"inter_weight": 2.0, "intra_weight": 3.0, "temperature": 4.0}

# Measured in float64 once the values agreed with the slow loop: the loss, its gradient's norm and first row.
FROZEN = [
    (
        {"B": 6, "C": 10, "seed": 0},
        {"inter_weight": 2.0, "intra_weight": 2.0, "temperature": 4.0},
        63.70057854586334,
        5.555498690753249,
        [
            -0.4364701969046034,
            0.7472012496354998,
            0.8856091662710841,
            0.5947068167934102,
            -0.025139177624644023,
            -0.339780837777989,
        ],
    ),
    (
        {"B": 5, "C": 7, "seed": 1},
        {"inter_weight": 1.0, "intra_weight": 0.5, "temperature": 1.0},
        1.4224749215880788,
        0.09273987725074412,
        [
            0.00267087067989433,
            0.041113018796045814,
            0.002253659322782822,
            -2.7204437030274944e-05,
            -0.0068917489641042344,
            -0.04480861936765949,
        ],
    ),
]


def slow_pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return sum(a * b) / np.sqrt(sum(a * a) * sum(b * b))


def slow_dist(student_BC: np.ndarray, teacher_BC: np.ndarray) -> float:
    s_BC = np.array([softmax_row(row, 4.0) for row in student_BC])
    t_BC = np.array([softmax_row(row, 4.0) for row in teacher_BC])
    inter = [1 - slow_pearson(s, t) for s, t in zip(s_BC, t_BC, strict=True)]
    intra = [1 - slow_pearson(s_BC[:, c], t_BC[:, c]) for c in range(s_BC.shape[1])]
    return 16.0 * (2.0 * sum(inter) / len(inter) + 3.0 * sum(intra) / len(intra))


def test_agrees_with_slow_loop() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    expected = slow_dist(*numpy_of(student_BC, teacher_BC))
    assert dist_loss(student_BC, teacher_BC, **SETTINGS).item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("case", "settings", "frozen_loss", "frozen_norm", "frozen_row"), FROZEN)
def test_agrees_with_frozen_numbers(
    case: dict[str, int], settings: dict[str, float], frozen_loss: float, frozen_norm: float, frozen_row: list[float]
) -> None:
    student_BC, teacher_BC, *_ = golden_inputs(case)
    loss = dist_loss(student_BC, teacher_BC, **settings)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(frozen_loss, abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen_norm, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen_row, abs=1e-9)


def test_is_zero_at_teacher() -> None:
    student_BC, *_ = random_inputs()
    assert dist_loss(student_BC, student_BC, **SETTINGS).item() == pytest.approx(0, abs=1e-12)


def test_ignores_how_far_probabilities_are_mixed_with_the_uniform() -> None:
    student_BC, *_ = random_inputs()
    flatter_BC = (0.3 * torch.softmax(student_BC / 4, 1) + 0.7 / 8).log() * 4
    loss = dist_loss(student_BC, flatter_BC, **SETTINGS)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_opposed_rows_are_two_apart() -> None:
    p_BC = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], dtype=torch.float64)
    opposed_BC = 2 / 3 - p_BC
    loss = dist_loss(p_BC.log(), opposed_BC.log(), inter_weight=1.0, intra_weight=0.0, temperature=1.0)
    assert loss.item() == pytest.approx(2, abs=1e-12)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: dist_loss(s, t, **SETTINGS))


def test_gradient_flows_into_student_alone() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    torch.autograd.gradcheck(lambda s: dist_loss(s, teacher_BC, **SETTINGS), student_BC)
    assert_teacher_is_spared(lambda s, t, y, g: dist_loss(s, t, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_is_finite_at_extreme_logits(dtype: torch.dtype, temperature: float) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(dist_loss(student_BC, teacher_BC, **{**SETTINGS, "temperature": temperature}), student_BC)


@pytest.mark.parametrize("flat", ["student", "teacher"])
def test_counts_what_has_no_spread_as_uncorrelated(flat: str) -> None:
    student_BC, teacher_BC, *_ = (x.detach().float() for x in random_inputs())
    (student_BC if flat == "student" else teacher_BC).fill_(0.1)
    loss = dist_loss(student_BC.requires_grad_(), teacher_BC, **SETTINGS)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss.item() == pytest.approx(16.0 * (2.0 + 3.0))
    assert not gradient_BC.any()


def test_one_flat_row_leaves_the_others_be() -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    flat_BC = torch.cat([student_BC.detach()[:4], torch.zeros(1, 8, dtype=torch.float64)]).requires_grad_()
    rows = {"inter_weight": 1.0, "intra_weight": 0.0, "temperature": 1.0}
    loss = dist_loss(flat_BC, teacher_BC, **rows)
    torch.testing.assert_close(5 * loss, 4 * dist_loss(student_BC[:4], teacher_BC[:4], **rows) + 1)
    (gradient_BC,) = torch.autograd.grad(loss, flat_BC)
    assert gradient_BC[:4].any(1).all()
    assert not gradient_BC[4].any()


@pytest.mark.parametrize("batch", [1, 2])
def test_refuses_a_batch_without_relations_within_a_class(batch: int) -> None:
    student_BC, teacher_BC, *_ = random_inputs(batch)
    with pytest.raises(ConfigError, match=f"within a class needs a batch of at least 3 images, got {batch}; raise the"):
        dist_loss(student_BC, teacher_BC, **SETTINGS)
    rows = dist_loss(student_BC, teacher_BC, **{**SETTINGS, "intra_weight": 0.0})
    assert torch.autograd.grad(rows, student_BC)[0].any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    student_BC, teacher_BC, *_ = random_inputs()
    with pytest.raises(ConfigError, match="temperature must be finite and above 0, got"):
        dist_loss(student_BC, teacher_BC, inter_weight=2.0, intra_weight=2.0, temperature=temperature)


def test_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"one shape \(batch, classes\), got \(2, 10\) and \(2, 100\)"):
        dist_loss(torch.zeros(2, 10), torch.zeros(2, 100), **SETTINGS)
