"""Inputs and frozen numbers that the tests of the losses share. Legend: B batch, C classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RELEASED = json.loads((GOLDEN / "disk_loss.json").read_text())["cases"]
OWN = json.loads((GOLDEN / "losses.json").read_text())["cases"]


def golden_inputs(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits and helper (both with gradient), teacher logits, targets, in the order of the losses."""
    batch, classes, seed = case["B"], case["C"], case["seed"]
    i = torch.arange(batch * classes, dtype=torch.float64).view(batch, classes)
    j = torch.arange(batch, dtype=torch.float64)
    student_BC = (3 * torch.sin(1.3 * i + seed)).requires_grad_()
    teacher_BC = 4 * torch.cos(0.9 * i + 1 + 2 * seed)
    targets_B = (7 * torch.arange(batch) + 3 * seed) % classes
    helper_B = (0.5 + 0.45 * torch.sin(2.1 * j + seed)).requires_grad_()
    return student_BC, teacher_BC, targets_B, helper_B


def random_inputs(
    batch: int = 5, classes: int = 8, scale: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `golden_inputs`, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    student_BC, teacher_BC = scale * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    targets_B = torch.randint(classes, (batch,), generator=generator)
    helper_B = torch.rand(batch, generator=generator, dtype=torch.float64)
    return student_BC.requires_grad_(), teacher_BC, targets_B, helper_B.requires_grad_()


def extreme_inputs(dtype: torch.dtype, helper: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of +-1e4, where student and teacher agree, differ, or one of them is flat."""
    e = 1e4
    student_BC = torch.tensor([[e, -e, 0.0], [e, -e, 0.0], [0.0, 0.0, 0.0], [-e, e, e]], dtype=dtype)
    teacher_BC = torch.tensor([[e, -e, 0.0], [-e, e, 0.0], [e, -e, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    targets_B = torch.tensor([0, 1, 1, 0])
    helper_B = torch.full((4,), helper, dtype=dtype)
    return student_BC.requires_grad_(), teacher_BC, targets_B, helper_B.requires_grad_()


def softmax_row(logits: np.ndarray, temperature: float) -> np.ndarray:
    exponentials = np.exp(logits / temperature - (logits / temperature).max())
    return exponentials / exponentials.sum()


def support_row(teacher: np.ndarray, target: int, top_k: int) -> list[int]:
    """The teacher's top K united with the label."""
    return sorted({int(k) for k in np.argsort(-teacher)[:top_k]} | {int(target)})


def numpy_of(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


def assert_finite(loss: Tensor, *inputs: Tensor) -> None:
    """The value and the gradient in each input are finite, and the loss has float32 at least."""
    assert loss.dtype in (torch.float32, torch.float64)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient.isfinite().all()


def assert_invariant(loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """A constant added to a row of logits, and a renaming of the classes, change nothing."""
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    expected = loss(student_BC, teacher_BC, targets_B, helper_B)
    shift_B1 = torch.arange(5.0)[:, None]
    shifted = loss(student_BC + shift_B1, teacher_BC - 2 * shift_B1, targets_B, helper_B)
    torch.testing.assert_close(shifted, expected)
    order_C = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    renamed_B = order_C.argsort()[targets_B]
    torch.testing.assert_close(loss(student_BC[:, order_C], teacher_BC[:, order_C], renamed_B, helper_B), expected)


def assert_teacher_is_spared(loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """The student gets a gradient, the teacher none."""
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    teacher_BC.requires_grad_()
    loss(student_BC, teacher_BC, targets_B, helper_B).backward()
    assert student_BC.grad is not None
    assert teacher_BC.grad is None
