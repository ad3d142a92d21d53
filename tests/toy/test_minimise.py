"""Descent from many starts: it ends in the minima that are there, each start in its own valley."""

from __future__ import annotations

import torch
from torch import Tensor

from disk_kd.toy.minimise import equal_ends, is_minimum, minimise


def two_wells(x_P: Tensor) -> Tensor:
    """Minima at (-1, 0) and (1, 0), of values -0.1 and 0.1."""
    return (x_P[0] ** 2 - 1) ** 2 + 3 * x_P[1] ** 2 + 0.1 * (1.5 * x_P[0] - 0.5 * x_P[0] ** 3)


def test_each_start_ends_in_its_own_valley() -> None:
    starts_SP = torch.tensor([[-2.0, 1.0], [2.0, 1.0], [-0.3, -2.0], [0.3, 0.1]], dtype=torch.float64)
    ends_SP, loss_S, slope_S = minimise(two_wells, starts_SP)
    torch.testing.assert_close(ends_SP[:, 0], torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(loss_S, 0.1 * ends_SP[:, 0])
    assert slope_S.max() < 1e-6
    assert [sorted(group.tolist()) for group in equal_ends(ends_SP, loss_S)] == [[0, 2], [1, 3]]


def test_a_saddle_and_a_plateau_are_no_minima() -> None:
    points_SP = torch.tensor([[-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert is_minimum(two_wells, points_SP).tolist() == [True, False]
    assert not is_minimum(
        lambda x_P: torch.exp(-x_P.square().sum()), torch.full((1, 2), 9.0, dtype=torch.float64)
    ).any()
