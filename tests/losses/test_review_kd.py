from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import assert_finite
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses import review_kd
from disk_kd.losses.review_kd import ReviewKD, hierarchical_context_loss

STUDENT, TEACHER = [(2, 8, 8), (3, 4, 4), (4, 1, 1)], [(3, 4, 4), (5, 4, 4), (6, 1, 1)]
EPS = 1e-5  # of a batch norm

FROZEN: dict[str, Any] = {
    "loss": 1.7072373189709533,
    "gradients": [0.08219438191319454, 0.08336586018766858, 0.1576011680261788],
}


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    numbers = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(1.3 * numbers + 0.05 * numbers.sqrt() + phase).view(shape)


def maps(shapes: list[Any], phase: float = 0.0, batch: int = 3) -> list[Tensor]:
    return [wave(batch, *shape, phase=phase + k) for k, shape in enumerate(shapes)]


def review(student: Any = STUDENT, teacher: Any = TEACHER) -> ReviewKD:
    """With weights that are the same whatever draws random numbers."""
    module = ReviewKD(student, teacher).double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * wave(*parameter.shape, phase=float(k)))
    return module


def slow_pool(map_HW: np.ndarray, size: int) -> np.ndarray:
    height, width = map_HW.shape
    cells = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            cells[i, j] = map_HW[rows, j * width // size : -(-(j + 1) * width // size)].mean()
    return cells


def slow_hcl(student: np.ndarray, teacher: np.ndarray) -> float:
    difference = (student - teacher).reshape(-1, *student.shape[2:])
    terms, weights = [np.mean(difference**2)], [1.0]
    for size in (4, 2, 1):
        if size < student.shape[2] and size < student.shape[3]:
            terms.append(np.mean([slow_pool(d, size) ** 2 for d in difference]))
            weights.append(weights[-1] / 2)
    return float(np.dot(terms, weights) / np.sum(weights))


def slow_convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    pad = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            patch = padded[:, :, i : i + 2 * pad + 1, j : j + 2 * pad + 1]
            out[:, :, i, j] = np.einsum("bchw,ochw->bo", patch, weight)
    return out if bias is None else out + bias[:, None, None]


def slow_resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(size[k]) * x.shape[2 + k] // size[k] for k in range(2))
    return x[:, :, rows][:, :, :, columns]


def slow_review(module: ReviewKD, student_maps: list[Tensor], teacher_maps: list[Tensor]) -> float:
    """In eval mode, with the batch norms' first statistics: mean 0, variance 1."""
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        out = slow_convolution(x, state[f"{name}.0.weight"]) / np.sqrt(1 + EPS)
        return out * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]

    total, deeper = 0.0, None
    for level in (2, 1, 0):
        r = layer(student_maps[level].numpy(), f"fusions.{level}.reduce")
        if deeper is not None:
            up = slow_resize(deeper, r.shape[2:])
            name = f"fusions.{level}.attention.0"
            both = np.concatenate([r, up], axis=1)
            a = 1 / (1 + np.exp(-slow_convolution(both, state[f"{name}.weight"], state[f"{name}.bias"])))
            r = a[:, :1] * r + a[:, 1:] * up
        teacher_map = teacher_maps[level].numpy()
        deeper = slow_resize(r, teacher_map.shape[2:])
        total += slow_hcl(layer(deeper, f"fusions.{level}.expand"), teacher_map)
    return total


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 7), (8, 8), (3, 9)])
def test_context_loss_agrees_with_slow_loop(size: tuple[int, int]) -> None:
    student_BCHW, teacher_BCHW = wave(2, 3, *size), wave(2, 3, *size, phase=0.4)
    expected = slow_hcl(student_BCHW.numpy(), teacher_BCHW.numpy())
    assert hierarchical_context_loss(student_BCHW, teacher_BCHW).item() == pytest.approx(expected, abs=1e-12)


def test_review_agrees_with_slow_loop() -> None:
    module = review().eval()
    student_maps, teacher_maps = maps(STUDENT), maps(TEACHER, 0.5)
    expected = slow_review(module, student_maps, teacher_maps)
    assert module(student_maps, teacher_maps).item() == pytest.approx(expected, abs=1e-9)


def test_agrees_with_frozen_numbers() -> None:
    """Measured from this package once it agreed with the slow loops."""
    student_maps = [student_map.requires_grad_() for student_map in maps(STUDENT)]
    value = review()(student_maps, maps(TEACHER, 0.5))
    gradients = torch.autograd.grad(value, student_maps)
    assert value.item() == pytest.approx(FROZEN["loss"], abs=1e-9)
    assert [gradient.norm().item() for gradient in gradients] == pytest.approx(FROZEN["gradients"], abs=1e-9)


def test_context_loss_of_equal_maps_is_zero_and_of_an_offset_its_square() -> None:
    map_BCHW = wave(2, 3, 8, 8)
    assert hierarchical_context_loss(map_BCHW, map_BCHW) == 0
    assert hierarchical_context_loss(map_BCHW + 0.5, map_BCHW).item() == pytest.approx(0.25)


def test_context_loss_of_a_chessboard_is_that_of_full_size_alone() -> None:
    board_88 = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    loss = hierarchical_context_loss(board_88.expand(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    assert loss.item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def test_context_loss_ignores_the_order_of_channels_and_places_mirrored() -> None:
    student_BCHW, teacher_BCHW = wave(2, 3, 8, 8), wave(2, 3, 8, 8, phase=0.4)
    expected = hierarchical_context_loss(student_BCHW, teacher_BCHW)
    changed = (x[:, [2, 0, 1]].flip(3) for x in (student_BCHW, teacher_BCHW))
    torch.testing.assert_close(hierarchical_context_loss(*changed), expected)


def test_deep_maps_reach_shallow_levels_and_not_the_other_way() -> None:
    module = review().eval()
    student_maps = [student_map.requires_grad_() for student_map in maps(STUDENT)]
    deep = module.fusions[2](student_maps[2], None, (1, 1))[1]
    middle = module.fusions[1](student_maps[1], deep, (4, 4))[0]
    gradients = torch.autograd.grad(middle.square().sum(), student_maps, allow_unused=True)
    assert gradients[0] is None
    assert gradients[1].any()
    assert gradients[2].any()


def test_one_level_is_a_projection_and_the_context_loss() -> None:
    module = review([(4, 4, 4)], [(6, 4, 4)]).eval()
    student_map, teacher_map = wave(2, 4, 4, 4), wave(2, 6, 4, 4)
    fusion = module.fusions[0]
    assert fusion.attention is None
    expected = hierarchical_context_loss(fusion.expand(fusion.reduce(student_map)), teacher_map)
    torch.testing.assert_close(module([student_map], [teacher_map]), expected)


def test_channels_while_fused_are_those_of_the_deepest_map_up_to_512() -> None:
    assert ReviewKD(STUDENT, TEACHER).fusions[0].reduce[0].out_channels == 4
    assert ReviewKD([(600, 1, 1)], [(8, 1, 1)]).fusions[0].reduce[0].out_channels == 512


def test_gradient_flows_into_students_and_weights_alone() -> None:
    module = review()
    student_maps, teacher_maps = maps(STUDENT), maps(TEACHER, 0.5)
    for part in (*student_maps, *teacher_maps):
        part.requires_grad_()
    torch.autograd.gradcheck(
        lambda *s: module.eval()(s, [t.detach() for t in teacher_maps]), student_maps, fast_mode=True
    )
    module.train()(student_maps, teacher_maps).backward()
    assert all(part.grad is None for part in teacher_maps)
    assert all(part.grad is not None for part in (*student_maps, *module.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_context_loss_is_finite_at_extremes(dtype: torch.dtype) -> None:
    student_BCHW = (1e4 * wave(2, 3, 8, 8)).to(dtype).requires_grad_()
    for teacher_BCHW in (-student_BCHW, torch.zeros_like(student_BCHW), student_BCHW):
        assert_finite(hierarchical_context_loss(student_BCHW, teacher_BCHW), student_BCHW)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_review_is_finite_at_extremes_and_under_autocast(scale: float) -> None:
    module = review().float()
    student_maps = [(scale * x).float().requires_grad_() for x in maps(STUDENT)]
    teacher_maps = [(scale * x).float() for x in maps(TEACHER)]
    assert_finite(module(student_maps, teacher_maps), *student_maps)
    with torch.autocast("cpu", torch.bfloat16):
        value = module(student_maps, teacher_maps)
    assert_finite(value, *student_maps)


def test_compiles_in_one_graph() -> None:
    module = review()
    student_maps, teacher_maps = [x.requires_grad_() for x in maps(STUDENT)], maps(TEACHER)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    values = [f(student_maps, teacher_maps) for f in (compiled, module)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student_maps) for value in values))


def test_steps_of_sgd_lower_it() -> None:
    torch.manual_seed(0)
    module = ReviewKD(STUDENT, TEACHER).double()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    values = []
    for _ in range(20):
        values.append(module(maps(STUDENT), maps(TEACHER, 0.5)))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


def test_examples_run() -> None:
    result = doctest.testmod(review_kd, extraglobs={"torch": torch})
    assert (result.attempted >= 6, result.failed) == (True, 0)


def test_refuses_unlike_levels() -> None:
    with pytest.raises(ConfigError, match="as many student as teacher maps are needed, at least 1, got 3 and 2"):
        ReviewKD(STUDENT, TEACHER[:2])
    with pytest.raises(ConfigError, match="at least 1, got 0 and 0"):
        ReviewKD([], [])


def test_refuses_other_maps() -> None:
    with pytest.raises(ConfigError, match=r"student maps must have the shapes .*, got \[\(2, 8, 8\)\]"):
        review()(maps(STUDENT[:1]), maps(TEACHER))
    with pytest.raises(ConfigError, match=r"teacher maps must have the shapes .*; give the layers and image size"):
        review()(maps(STUDENT), maps(STUDENT))
    with pytest.raises(ConfigError, match=r"one shape \(B, C, H, W\), got \(2, 3, 4, 4\) and \(2, 3, 8, 8\)"):
        hierarchical_context_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8))


def test_refuses_to_train_on_one_image_with_single_places() -> None:
    one = maps(STUDENT, batch=1), maps(TEACHER, batch=1)
    with pytest.raises(ConfigError, match="ReviewKD with 1 x 1 maps needs a batch of at least 2 images, got 1"):
        review()(*one)
    assert review().eval()(*one).isfinite()
