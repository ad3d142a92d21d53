from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, numpy_of
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.fitnet import Regressor, fitnet_loss


def maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    i = torch.arange(2 * 3 * 2 * 2, dtype=torch.float64).view(2, 3, 2, 2)
    return torch.sin(1.3 * i + seed).requires_grad_(), torch.cos(0.9 * i + 2 * seed)


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_fitnet(student: np.ndarray, teacher: np.ndarray) -> float:
    pairs = list(zip(student.ravel(), teacher.ravel(), strict=True))
    return sum((s - t) ** 2 for s, t in pairs) / len(pairs)


def test_agrees_with_slow_loop() -> None:
    student_BCHW, teacher_BCHW = maps()
    expected = slow_fitnet(*numpy_of(student_BCHW, teacher_BCHW))
    assert fitnet_loss(student_BCHW, teacher_BCHW).item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    student_BCHW, teacher_BCHW = maps(seed=1)
    loss = fitnet_loss(student_BCHW, teacher_BCHW)
    (gradient_BCHW,) = torch.autograd.grad(loss, student_BCHW)
    assert loss.item() == pytest.approx(0.921996910471, abs=1e-9)
    assert gradient_BCHW.norm().item() == pytest.approx(0.392002744563, abs=1e-9)


def test_is_zero_at_the_teacher_and_quadratic_in_the_distance() -> None:
    student_BCHW, teacher_BCHW = maps()
    assert fitnet_loss(teacher_BCHW, teacher_BCHW) == 0
    far = fitnet_loss(teacher_BCHW + 3 * (student_BCHW - teacher_BCHW), teacher_BCHW)
    torch.testing.assert_close(far, 9 * fitnet_loss(student_BCHW, teacher_BCHW))


def test_gradient_flows_into_student_alone() -> None:
    student_BCHW, teacher_BCHW = maps()
    torch.autograd.gradcheck(lambda s: fitnet_loss(s, teacher_BCHW), student_BCHW)
    teacher_BCHW.requires_grad_()
    fitnet_loss(student_BCHW, teacher_BCHW).backward()
    assert student_BCHW.grad is not None
    assert teacher_BCHW.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_values(dtype: torch.dtype) -> None:
    student_BCHW = torch.tensor([1e4, -1e4, 0.0, 1e-30], dtype=dtype).view(1, 1, 2, 2).requires_grad_()
    teacher_BCHW = torch.tensor([-1e4, -1e4, 1e4, 0.0], dtype=dtype).view(1, 1, 2, 2)
    assert_finite(fitnet_loss(student_BCHW, teacher_BCHW), student_BCHW)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError, match=r"one shape, got \(2, 3, 4, 4\) and \(2, 5, 4, 4\); .* Regressor"):
        fitnet_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


@pytest.mark.parametrize("sides", [(4, 4), (8, 8), (2, 2), (7, 3)])
def test_regressor_gives_the_teachers_shape(sides: tuple[int, int]) -> None:
    regressor = Regressor((3, *sides), (5, 4, 4))
    assert regressor(random_map(2, 3, *sides)).shape == (2, 5, 4, 4)


def test_regressor_averages_larger_and_repeats_smaller_maps() -> None:
    regressor = Regressor((3, 4, 4), (5, 4, 4)).eval()
    map_BCHW = random_map(2, 3, 4, 4)
    expected = regressor(map_BCHW)
    larger_BCHW = map_BCHW.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(regressor(larger_BCHW), expected)
    halved = regressor(map_BCHW[:, :, ::2, ::2])
    torch.testing.assert_close(halved, expected[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_regressor_is_a_linear_map_of_channels_normalised() -> None:
    regressor = Regressor((3, 4, 4), (5, 4, 4), relu=False)
    map_BCHW = random_map(2, 3, 4, 4)
    mixed_BCHW = torch.einsum("tc,bchw->bthw", regressor.conv.weight[:, :, 0, 0], map_BCHW)
    mean_11 = mixed_BCHW.mean((0, 2, 3), keepdim=True)
    variance_11 = mixed_BCHW.var((0, 2, 3), correction=0, keepdim=True)
    expected = (mixed_BCHW - mean_11) / (variance_11 + 1e-5).sqrt()
    torch.testing.assert_close(regressor(map_BCHW), expected)
    assert (expected < 0).any()
    with_relu = Regressor((3, 4, 4), (5, 4, 4))
    with_relu.load_state_dict(regressor.state_dict())
    torch.testing.assert_close(with_relu(map_BCHW), expected.relu())


def test_regressor_refuses_other_channels() -> None:
    with pytest.raises(ConfigError, match=r"must be \(batch, 3, height, width\), got \(2, 4, 8, 8\)"):
        Regressor((3, 8, 8), (5, 4, 4))(torch.zeros(2, 4, 8, 8))


def test_regressor_refuses_to_train_on_one_value() -> None:
    regressor = Regressor((3, 2, 2), (5, 1, 1))
    with pytest.raises(ConfigError, match="a Regressor to 1 x 1 maps needs a batch of at least 2 images, got 1"):
        regressor(random_map(1, 3, 2, 2))
    assert regressor.eval()(random_map(1, 3, 2, 2)).shape == (1, 5, 1, 1)
    assert Regressor((3, 2, 2), (5, 2, 2))(random_map(1, 3, 2, 2)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_student_and_regressor(dtype: torch.dtype) -> None:
    regressor = Regressor((3, 8, 8), (5, 4, 4))
    student_BCHW = random_map(2, 3, 8, 8).to(dtype).requires_grad_()
    teacher_BCHW = random_map(2, 5, 4, 4, seed=1).to(dtype)
    assert_finite(fitnet_loss(regressor(student_BCHW), teacher_BCHW), student_BCHW, *regressor.parameters())


def test_compiles_in_one_graph() -> None:
    regressor = Regressor((3, 8, 8), (5, 4, 4)).eval()

    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return fitnet_loss(regressor(student), teacher)

    inputs = random_map(2, 3, 8, 8), random_map(2, 5, 4, 4, seed=1)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), loss(*inputs))
