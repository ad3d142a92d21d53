from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, numpy_of
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.vid import VariationalInformation, vid_loss


def golden_map(*shape: int, frequency: float) -> Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    return torch.sin(frequency * i + 0.5)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    mean = golden_map(2, 3, 2, 2, frequency=1.3).requires_grad_()
    variance = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64).requires_grad_()
    return mean, variance, golden_map(2, 3, 2, 2, frequency=0.9)


def golden_module(student_channels: int = 4, teacher_channels: int = 3) -> VariationalInformation:
    """In float64, its weights a sine."""
    vid = VariationalInformation((student_channels, 4, 4), (teacher_channels, 4, 4)).double()
    for n, parameter in enumerate(vid.parameters()):
        parameter.data = golden_map(*parameter.shape, frequency=1.1 + n)
    return vid


def slow_vid(mean: np.ndarray, variance: np.ndarray, teacher: np.ndarray) -> float:
    """The Gaussian's negative log-likelihood less its constant, log(2 pi) / 2."""
    total = 0.0
    for index in np.ndindex(mean.shape):
        v = variance[index[1]]
        density = np.exp(-((teacher[index] - mean[index]) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
        total += -np.log(density) - np.log(2 * np.pi) / 2
    return total / mean.size


def slow_mean(vid: VariationalInformation, student: np.ndarray) -> np.ndarray:
    first, second, third = (w[:, :, 0, 0] for w in numpy_of(*vid.mean.parameters()))
    mean = np.zeros((len(student), len(third), *student.shape[2:]))
    for i, y, x in np.ndindex(len(student), *student.shape[2:]):
        hidden = np.maximum(first @ student[i, :, y, x], 0)
        mean[i, :, y, x] = third @ np.maximum(second @ hidden, 0)
    return mean


def test_agrees_with_slow_loop() -> None:
    assert vid_loss(*inputs()).item() == pytest.approx(slow_vid(*numpy_of(*inputs())), abs=1e-12)


def test_module_agrees_with_slow_loop() -> None:
    vid = golden_module()
    student, teacher = golden_map(2, 4, 4, 4, frequency=1.3), golden_map(2, 3, 4, 4, frequency=0.9)
    (alpha,) = numpy_of(vid.alpha)
    expected = slow_vid(slow_mean(vid, student.numpy()), np.log(1 + np.exp(alpha)) + 1e-5, teacher.numpy())
    assert vid(student, teacher).item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    mean, variance, teacher = inputs()
    loss = vid_loss(mean, variance, teacher)
    gradients = torch.autograd.grad(loss, (mean, variance))
    assert loss.item() == pytest.approx(0.408875705844, abs=1e-9)
    assert [g.norm().item() for g in gradients] == pytest.approx([0.244291615953, 0.0482234271407], abs=1e-9)
    vid = golden_module()
    loss = vid(golden_map(2, 4, 4, 4, frequency=1.3), golden_map(2, 3, 2, 2, frequency=0.9))
    gradients = torch.autograd.grad(loss, list(vid.parameters()))
    assert loss.item() == pytest.approx(0.324822310172, abs=1e-9)
    assert [g.norm().item() for g in gradients] == pytest.approx(
        [0.0716690310088, 0.0524074103485, 0.187306644914, 0.0884417163753], abs=1e-9
    )


def test_is_half_the_squared_error_at_unit_variance() -> None:
    mean, variance, teacher = inputs()
    ones = torch.ones_like(variance)
    torch.testing.assert_close(vid_loss(mean, ones, teacher), (mean - teacher).square().mean() / 2)
    assert vid_loss(teacher, ones, teacher) == 0


def test_best_variance_is_the_mean_squared_error_of_the_channel() -> None:
    mean, _, teacher = inputs()
    best = (mean - teacher).square().mean((0, 2, 3)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(vid_loss(mean, best, teacher), best)
    assert gradient.abs().max() < 1e-15


def test_gradient_flows_into_student_and_module_alone() -> None:
    mean, variance, teacher = inputs()
    torch.autograd.gradcheck(lambda m, v: vid_loss(m, v, teacher), (mean, variance))
    vid = golden_module()
    student = golden_map(2, 4, 4, 4, frequency=1.3).requires_grad_()
    teacher = golden_map(2, 3, 8, 8, frequency=0.9).requires_grad_()
    vid(student, teacher).backward()
    assert teacher.grad is None
    for tensor in (student, *vid.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.norm() > 0


@pytest.mark.parametrize("variance", [1e-5 * 1.001, 0.1, 5.0, 500.0])
def test_starts_at_the_initial_variance(variance: float) -> None:
    vid = VariationalInformation((4, 4, 4), (3, 4, 4), initial_variance=variance)
    torch.testing.assert_close(vid.variance(), torch.full((3,), variance))


def test_larger_map_is_averaged_to_the_smaller() -> None:
    vid = golden_module()
    student, teacher = golden_map(2, 4, 4, 4, frequency=1.3), golden_map(2, 3, 4, 4, frequency=0.9)
    expected = vid(student, teacher)
    larger = [x.repeat_interleave(2, 2).repeat_interleave(3, 3) for x in (student, teacher)]
    torch.testing.assert_close(vid(larger[0], teacher), expected)
    torch.testing.assert_close(vid(student, larger[1]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [-200.0, 0.0, 200.0])
def test_is_finite_at_extreme_values(dtype: torch.dtype, alpha: float) -> None:
    vid = golden_module().float()
    vid.alpha.data.fill_(alpha)
    student = (1e4 * golden_map(2, 4, 4, 4, frequency=1.3)).to(dtype).requires_grad_()
    teacher = (-1e4 * golden_map(2, 3, 4, 4, frequency=0.9)).to(dtype)
    assert_finite(vid(student, teacher), student, *vid.parameters())


def test_compiles_in_one_graph() -> None:
    vid = golden_module()
    student, teacher = golden_map(2, 4, 4, 4, frequency=1.3), golden_map(2, 3, 8, 8, frequency=0.9)
    compiled = torch.compile(vid, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), vid(student, teacher))
    gradients = torch.autograd.grad(compiled(student, teacher), list(vid.parameters()))
    torch.testing.assert_close(gradients, torch.autograd.grad(vid(student, teacher), list(vid.parameters())))


def test_refuses_shapes_that_do_not_fit() -> None:
    mean, variance, teacher = inputs()
    with pytest.raises(ConfigError, match=r"got \(2, 3, 2, 2\), \(2, 3, 2, 2\) and \(2,\); predict the mean"):
        vid_loss(mean, variance[:2], teacher)
    vid = VariationalInformation((4, 4, 4), (3, 4, 4))
    with pytest.raises(ConfigError, match="student's map must have 4 channels, got 5; build VariationalInformation"):
        vid(torch.zeros(2, 5, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigError, match=r"got \(2, 3, 4, 4\), \(2, 6, 4, 4\) and \(3,\)"):
        vid(torch.zeros(2, 4, 4, 4), torch.zeros(2, 6, 4, 4))


def test_refuses_variances() -> None:
    with pytest.raises(ConfigError, match="need initial_variance > eps > 0, got 1e-06 and 1e-05"):
        VariationalInformation((4, 4, 4), (3, 4, 4), initial_variance=1e-6)
    with pytest.raises(ConfigError, match=r"got 5.0 and 0.0; try 5.0 and 1e-5"):
        VariationalInformation((4, 4, 4), (3, 4, 4), eps=0.0)
