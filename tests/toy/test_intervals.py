"""The 1-D problem: what is known of its surfaces."""

from __future__ import annotations

import pytest
import torch

from disk_kd.toy.forms import constant, kd
from disk_kd.toy.intervals import (
    PIECES,
    Row,
    accuracy,
    draw_starts,
    interval,
    objective,
    points,
    student_logits,
    teacher_logits,
)
from disk_kd.toy.minimise import equal_ends, is_minimum, minimise


def minima(row: Row) -> list[tuple[float, float, float]]:
    """a, w and accuracy, the worst first."""
    ends_SP, loss_S, _ = minimise(objective(row), draw_starts(60, seed=0))
    stands_S, right_S = is_minimum(objective(row), ends_SP), accuracy(ends_SP)
    firsts = [int(group[0]) for group in equal_ends(ends_SP, loss_S)]
    return sorted(((*ends_SP[i].tolist(), right_S[i].item()) for i in firsts if stands_S[i]), key=lambda m: m[2])


def test_points_weigh_by_mass() -> None:
    x_N, targets_N = points(7)
    assert len(x_N) == 7 * 30
    for low, high, mass, label in PIECES:
        inside_N = (x_N > low) & (x_N < high)
        assert inside_N.sum() == 7 * mass
        assert (targets_N[inside_N] == label).all()


def test_the_students_probabilities_sum_to_one_and_are_the_product() -> None:
    x_N = torch.linspace(0, 9, 50, dtype=torch.float64)
    log_s_N2 = student_logits(torch.tensor([2.0, 3.0], dtype=torch.float64), x_N)
    torch.testing.assert_close(log_s_N2.exp().sum(1), torch.ones_like(x_N))
    torch.testing.assert_close(log_s_N2[:, 1].exp(), torch.sigmoid(8 * (x_N - 2)) * torch.sigmoid(8 * (5 - x_N)))
    assert torch.isfinite(torch.stack(interval(torch.tensor(0.0), torch.tensor(9.0), torch.tensor([-900.0])))).all()


def test_the_teacher_is_always_right() -> None:
    x_N, targets_N = points(100)
    log_t_N2 = teacher_logits(x_N)
    assert (log_t_N2.argmax(1) == targets_N).all()
    torch.testing.assert_close(log_t_N2.exp().sum(1), torch.ones_like(x_N))


@pytest.mark.parametrize(("place", "expected"), [((2, 1), 20 / 30), ((2, 5), 25 / 30), ((5, 2), 26 / 30)])
def test_accuracy_is_mass(place: tuple[int, int], expected: float) -> None:
    assert accuracy(torch.tensor([place], dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-3)


def test_starts_lie_in_the_line() -> None:
    starts_SP = draw_starts(500, seed=3)
    assert (starts_SP >= 0).all()
    assert (starts_SP.sum(1) <= 9).all()


def test_kd_with_a_bounded_logarithm_has_the_posters_three_minima() -> None:
    found = minima(Row(constant(0.01)))
    for (a, w, right), known in zip(found, [(2, 1, 0.67), (2, 5, 0.83), (4.9, 2.1, 0.87)], strict=True):
        assert (a, w, right) == pytest.approx(known, abs=0.11)
        assert right == pytest.approx(known[2], abs=0.01)


def test_kd_itself_has_one_between_the_intervals() -> None:
    ((a, w, right),) = minima(Row(kd()))
    assert (a, w) == pytest.approx((3.55, 3.42), abs=0.02)
    assert right == pytest.approx(0.742, abs=0.005)


def test_censoring_leaves_the_posters_last_one() -> None:
    ((a, w, right),) = minima(Row(kd(), censored=True))
    assert (a, w) == pytest.approx((4.9, 2.1), abs=0.05)
    assert right == pytest.approx(0.86, abs=0.01)
