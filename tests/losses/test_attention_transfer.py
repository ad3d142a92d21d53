from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, numpy_of
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses.attention_transfer import attention_transfer_loss, pool_to_smaller

Maps = tuple[list[Tensor], list[Tensor]]


def golden_map(*shape: int, frequency: float, requires_grad: bool = False) -> Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    return torch.sin(frequency * i + 0.5).requires_grad_(requires_grad)


def maps() -> Maps:
    """Two layers of one spatial size in student and teacher, other channels."""
    student = [golden_map(2, 3, 4, 4, frequency=1.3, requires_grad=True)]
    student.append(golden_map(2, 5, 2, 3, frequency=0.7, requires_grad=True))
    return student, [golden_map(2, 4, 4, 4, frequency=0.9), golden_map(2, 6, 2, 3, frequency=2.1)]


def slow_attention(map_CHW: np.ndarray) -> np.ndarray:
    channels, height, width = map_CHW.shape
    attention = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            attention[y, x] = sum(map_CHW[c, y, x] ** 2 for c in range(channels)) / channels
    return attention / np.sqrt((attention**2).sum())


def slow_attention_transfer(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> float:
    total = 0.0
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        pairs = list(zip(*numpy_of(student, teacher), strict=True))
        total += sum(((slow_attention(s) - slow_attention(t)) ** 2).mean() for s, t in pairs) / len(pairs)
    return total


def test_agrees_with_slow_loop() -> None:
    student, teacher = maps()
    expected = slow_attention_transfer(student, teacher)
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    student, teacher = maps()
    loss = attention_transfer_loss(student, teacher)
    gradients = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.058870913641, abs=1e-9)
    assert [g.norm().item() for g in gradients] == pytest.approx([0.00662933964174, 0.0676034695101], abs=1e-9)


def test_paper_weight_goes_with_the_mean() -> None:
    """1000, divided by batch and places, times the squared distances of all attention maps."""
    student, teacher = [maps()[0][0]], [maps()[1][0]]
    attention = [np.stack([slow_attention(m) for m in numpy_of(x[0])[0]]) for x in (student, teacher)]
    squared = ((attention[0] - attention[1]) ** 2).sum()
    assert 1000 * attention_transfer_loss(student, teacher).item() == pytest.approx(1000 / (2 * 16) * squared)


def test_is_zero_at_the_teacher_whatever_scale_and_channels() -> None:
    _, teacher = maps()
    scale_B111 = torch.tensor([3.0, 0.2])[:, None, None, None]
    student = [(-scale_B111 * t).flip(1).repeat(1, 2, 1, 1) for t in teacher]
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(0, abs=1e-15)


def test_larger_map_is_averaged_to_the_smaller() -> None:
    student, teacher = (x[0].detach() for x in maps())
    expected = attention_transfer_loss([student], [teacher])
    larger = [x.repeat_interleave(2, 2).repeat_interleave(3, 3) for x in (student, teacher)]
    torch.testing.assert_close(attention_transfer_loss([larger[0]], [teacher]), expected)
    torch.testing.assert_close(attention_transfer_loss([student], [larger[1]]), expected)


def test_pools_each_side_to_the_smaller() -> None:
    tall, wide = torch.rand(2, 3, 8, 4), torch.rand(2, 5, 2, 6)
    student, teacher = pool_to_smaller(tall, wide)
    assert (student.shape, teacher.shape) == ((2, 3, 2, 4), (2, 5, 2, 4))
    torch.testing.assert_close(student, tall.unflatten(2, (2, 4)).mean(3))


def test_gradient_flows_into_student_alone() -> None:
    student, teacher = maps()
    torch.autograd.gradcheck(lambda *s: attention_transfer_loss(s, teacher), student)
    for t in teacher:
        t.requires_grad_()
    attention_transfer_loss(student, teacher).backward()
    assert all(s.grad is not None for s in student)
    assert all(t.grad is None for t in teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-7, 1e4])
def test_is_finite_at_extreme_values(dtype: torch.dtype, scale: float) -> None:
    student = [(scale * golden_map(2, 3, 4, 4, frequency=1.3)).to(dtype).requires_grad_()]
    teacher = [golden_map(2, 4, 2, 2, frequency=0.9).to(dtype)]
    assert_finite(attention_transfer_loss(student, teacher), *student)
    student[0].data[0] = 0
    assert_finite(attention_transfer_loss(student, teacher), *student)


def test_stays_in_float32_under_autocast() -> None:
    student, teacher = ([m.detach().float() for m in x] for x in maps())
    with torch.autocast("cpu", torch.bfloat16):
        loss = attention_transfer_loss(student, teacher)
    torch.testing.assert_close(loss, attention_transfer_loss(student, teacher))


def test_compiles_in_one_graph() -> None:
    student, teacher = maps()
    student[1] = golden_map(2, 5, 4, 6, frequency=0.7, requires_grad=True)
    compiled = torch.compile(attention_transfer_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), attention_transfer_loss(student, teacher))
    gradients = torch.autograd.grad(compiled(student, teacher), student)
    torch.testing.assert_close(gradients, torch.autograd.grad(attention_transfer_loss(student, teacher), student))


def test_refuses_unpaired_maps() -> None:
    student, teacher = maps()
    with pytest.raises(ConfigError, match="at least one, got 2 and 1; pair the layers"):
        attention_transfer_loss(student, teacher[:1])
    with pytest.raises(ConfigError, match="at least one, got 0 and 0"):
        attention_transfer_loss([], [])
    with pytest.raises(ConfigError, match=r"of one batch, got \(1, 3, 4, 4\) and \(2, 4, 4, 4\)"):
        attention_transfer_loss([student[0][:1]], [teacher[0]])
    with pytest.raises(ConfigError, match=r"of one batch, got \(2, 8\) and \(2, 4, 4, 4\); give maps before pooling"):
        attention_transfer_loss([torch.zeros(2, 8)], [teacher[0]])
