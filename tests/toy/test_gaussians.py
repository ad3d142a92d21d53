"""The 2-D problem."""

from __future__ import annotations

import pytest
import torch

from disk_kd.toy.gaussians import accuracy, align, draw_starts, make_data, sample, shares, student_logits


def test_the_teacher_is_right_on_its_examples() -> None:
    data = make_data(torch.Generator().manual_seed(5))
    assert (data.teacher_N3.argmax(1) == data.targets_N).all()
    assert data.teacher_N3.shape == (72, 3)


def test_clusters_are_those_of_the_poster() -> None:
    x_N2, targets_N = sample(4000, torch.Generator().manual_seed(0))
    centres = x_N2.view(6, 4000, 2).mean(1)
    expected = torch.tensor([[0, 0], [1.5, 0], [3, 0], [0, 1.5], [1.5, 1.5], [3, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(centres, expected, atol=0.02, rtol=0.0)
    assert x_N2.view(6, 4000, 2).std(1).mean() == pytest.approx(0.22, abs=0.005)
    assert targets_N[::4000].tolist() == [0, 1, 2, 1, 2, 0]


def test_align_undoes_swapped_and_negated_units_and_keeps_the_student() -> None:
    generator = torch.Generator().manual_seed(0)
    original_P, other_P = draw_starts(2, 3, generator)
    swapped_P = original_P.clone()
    swapped_P[:6] = original_P[:6].view(2, 3)[:, [2, 0, 1]].flatten()
    swapped_P[6:9] = original_P[6:9][[2, 0, 1]]
    swapped_P[9:18] = original_P[9:18].view(3, 3)[[2, 0, 1]].flatten()
    for part in (slice(0, 6, 3), slice(6, 7), slice(9, 12)):
        swapped_P[part] *= -1
    torch.testing.assert_close(align(swapped_P, original_P), original_P)
    x_N2 = sample(5, generator)[0]
    torch.testing.assert_close(student_logits(align(other_P, original_P), x_N2), student_logits(other_P, x_N2))


def test_shares_go_to_the_nearest_level() -> None:
    levels = shares(torch.tensor([0.2, 0.52, 0.66, 0.67, 0.83, 0.96, 1.0, 1.0], dtype=torch.float64))
    assert levels == {"50": 0.25, "60": 0.0, "70": 0.25, "80": 0.125, "90": 0.0, "100": 0.375}


def test_accuracy_of_a_student_that_says_one_class() -> None:
    data = make_data(torch.Generator().manual_seed(0))
    constant_P = torch.zeros(1, 15, dtype=torch.float64)
    constant_P[0, -1] = 1.0
    assert accuracy(constant_P, data).item() == pytest.approx(1 / 3)
