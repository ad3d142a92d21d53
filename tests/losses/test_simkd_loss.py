from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from loss_cases import assert_finite

from disk_kd.errors import ConfigError
from disk_kd.losses import simkd
from disk_kd.losses.simkd import simkd_loss


def wave(*shape: int, phase: float = 0.0) -> torch.Tensor:
    return torch.sin(1.3 * torch.arange(int(np.prod(shape)), dtype=torch.float64) + phase).view(shape)


def test_agrees_with_slow_loop() -> None:
    projected_BCHW, teacher_BCHW = wave(2, 3, 2, 2), wave(2, 3, 4, 6, phase=0.5)
    total = 0.0
    for b, c, i, j in np.ndindex(2, 3, 2, 2):
        cell = teacher_BCHW.numpy()[b, c, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        total += (projected_BCHW[b, c, i, j].item() - cell.mean()) ** 2
    assert simkd_loss(projected_BCHW, teacher_BCHW).item() == pytest.approx(total / 24, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    """By hand: cells of means 1 and 5 against 0 and 2."""
    teacher_BCHW = torch.tensor([[[[0.0, 2.0, 4.0, 6.0]]]])
    assert simkd_loss(torch.tensor([[[[0.0, 2.0]]]]), teacher_BCHW).item() == 5.0


def test_equal_maps_give_zero_and_an_offset_its_square() -> None:
    map_BCHW = wave(2, 3, 4, 4)
    assert simkd_loss(map_BCHW, map_BCHW) == 0
    assert simkd_loss(map_BCHW + 0.5, map_BCHW).item() == pytest.approx(0.25)
    doubled = map_BCHW.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert simkd_loss(map_BCHW, doubled).item() == pytest.approx(0, abs=1e-12)


def test_gradient_flows_into_student_alone() -> None:
    projected_BCHW, teacher_BCHW = wave(2, 3, 2, 2).requires_grad_(), wave(2, 3, 4, 4).requires_grad_()
    torch.autograd.gradcheck(lambda p: simkd_loss(p, teacher_BCHW), projected_BCHW)
    simkd_loss(projected_BCHW, teacher_BCHW).backward()
    assert teacher_BCHW.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extremes(dtype: torch.dtype) -> None:
    projected_BCHW = (1e4 * wave(2, 3, 2, 2)).to(dtype).requires_grad_()
    assert_finite(simkd_loss(projected_BCHW, -1e4 * wave(2, 3, 4, 4).to(dtype)), projected_BCHW)


def test_compiles_in_one_graph() -> None:
    inputs = wave(2, 3, 2, 2), wave(2, 3, 4, 4)
    torch.testing.assert_close(
        torch.compile(simkd_loss, fullgraph=True, backend="aot_eager")(*inputs), simkd_loss(*inputs)
    )


def test_example_runs() -> None:
    result = doctest.testmod(simkd, extraglobs={"torch": torch})
    assert (result.attempted >= 3, result.failed) == (True, 0)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError, match=r"of one B and C, got \(2, 3, 2, 2\) and \(2, 4, 2, 2\)"):
        simkd_loss(torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 2, 2))
    with pytest.raises(ConfigError, match=r"must be \(B, C, H, W\) of one B and C, got \(2, 3\) and \(2, 3\)"):
        simkd_loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="give both models images of one size"):
        simkd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 4))
