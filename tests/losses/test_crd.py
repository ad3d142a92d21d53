from __future__ import annotations

import copy
import doctest
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import assert_finite
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.losses import crd
from disk_kd.losses.crd import ContrastiveLoss

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, -1, 1])
IDS = torch.tensor([9, 0, 4, 7])
TARGETS = LABELS[IDS]
SETTINGS: dict[str, Any] = {"dimensions": 4, "negatives": 5, "temperature": 0.5, "momentum": 0.3}

FROZEN: dict[str, Any] = {
    "loss": 6.111445496960721,
    "gradient": [-0.050078268217375675, -0.04992673903160393, -0.026293855662136083],
    "negatives": [[3, 11, 6, 7, 8], [1, 1, 9, 1, 4], [6, 0, 6, 3, 7], [5, 8, 2, 4, 11]],
}


def small(seed: int = 0, **options: Any) -> ContrastiveLoss:
    """Widths 3 and 6, with weights that are the same whatever draws random numbers."""
    loss = ContrastiveLoss(3, 6, LABELS, seed=seed, **{**SETTINGS, **options}).double()
    with torch.no_grad():
        for k, parameter in enumerate(loss.parameters()):
            wave = torch.cos(0.7 * torch.arange(parameter.numel()) + k)
            parameter.copy_(wave.view(parameter.shape))
    return loss


def features(step: int = 0) -> tuple[Tensor, Tensor]:
    i = torch.arange(24, dtype=torch.float64)
    return torch.sin(1.3 * i[:12] + step).view(4, 3).requires_grad_(), torch.cos(0.9 * i + 2 * step).view(4, 6)


def run(loss: ContrastiveLoss, steps: range) -> list[float]:
    return [loss(*features(step), TARGETS, IDS).item() for step in steps]


def slow_embedding(features_BF: Tensor, layer: torch.nn.Linear) -> np.ndarray:
    embedded = features_BF.detach().numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return embedded / np.sqrt((embedded**2).sum(1, keepdims=True))


def slow_direction(anchors_BD: np.ndarray, memory_ND: np.ndarray, rows: list[list[int]]) -> float:
    """One direction on a first batch; 11 samples have a class."""
    exponentials = [[np.exp(a @ memory_ND[n] / 0.5) for n in row] for a, row in zip(anchors_BD, rows, strict=True)]
    z = 11 * np.mean(exponentials)
    total = 0.0
    for positive, *negatives in exponentials:
        total -= np.log(positive / z / (positive / z + 5 / 11))
        total -= sum(np.log(1 - negative / z / (negative / z + 5 / 11)) for negative in negatives)
    return total / len(rows)


def test_agrees_with_slow_loop() -> None:
    loss = small()
    student_BF, teacher_BF = features()
    rows = [[i, *drawn] for i, drawn in zip(IDS.tolist(), loss.draw_negatives(TARGETS, IDS).tolist(), strict=True)]
    memory_2ND = loss.memory.clone().numpy()
    s_BD, t_BD = slow_embedding(student_BF, loss.embed_student), slow_embedding(teacher_BF, loss.embed_teacher)
    expected = slow_direction(s_BD, memory_2ND[1], rows) + slow_direction(t_BD, memory_2ND[0], rows)
    assert loss(student_BF, teacher_BF, TARGETS, IDS).item() == pytest.approx(expected, abs=1e-9)

    for before, after, embedded_BD in zip(memory_2ND, loss.memory.numpy(), (s_BD, t_BD), strict=True):
        for i, embedding in zip(IDS.tolist(), embedded_BD, strict=True):
            mixed = 0.3 * before[i] + 0.7 * embedding
            before[i] = mixed / np.sqrt(mixed @ mixed)
        assert after == pytest.approx(before, abs=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    """Measured from this package once it agreed with the slow loop."""
    loss = small()
    assert loss.draw_negatives(TARGETS, IDS).tolist() == FROZEN["negatives"]
    student_BF, teacher_BF = features()
    value = loss(student_BF, teacher_BF, TARGETS, IDS)
    (gradient_BF,) = torch.autograd.grad(value, student_BF)
    assert value.item() == pytest.approx(FROZEN["loss"], abs=1e-6)
    assert gradient_BF[0].tolist() == pytest.approx(FROZEN["gradient"], abs=1e-6)


def test_student_and_teacher_play_the_same_part() -> None:
    loss = ContrastiveLoss(6, 6, LABELS, seed=0, **SETTINGS).double()
    swapped = copy.deepcopy(loss)
    swapped.embed_student, swapped.embed_teacher = swapped.embed_teacher, swapped.embed_student
    swapped.memory.copy_(loss.memory.flip(0))
    a_BF, b_BF = torch.randn(2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(loss(a_BF, b_BF, TARGETS, IDS), swapped(b_BF, a_BF, TARGETS, IDS))


def test_order_of_the_batch_does_not_matter() -> None:
    student_BF, teacher_BF = features()
    order = torch.tensor([2, 0, 3, 1])
    permuted = small()(student_BF[order], teacher_BF[order], TARGETS[order], IDS[order])
    torch.testing.assert_close(permuted, small()(student_BF, teacher_BF, TARGETS, IDS))


def test_is_lowest_where_the_own_memory_is_the_other_networks_embedding() -> None:
    loss = small().eval()
    loss.log_z.zero_()
    student_BF, teacher_BF = (part[:1] for part in features())
    s_1D, t_1D = slow_embedding(student_BF, loss.embed_student), slow_embedding(teacher_BF, loss.embed_teacher)

    def with_memory(student_1D: np.ndarray, teacher_1D: np.ndarray) -> float:
        loss.memory[:, IDS[0]] = torch.from_numpy(np.concatenate([student_1D, teacher_1D]))
        return loss(student_BF, teacher_BF, TARGETS[:1], IDS[:1]).item()

    assert with_memory(t_1D, s_1D) < with_memory(s_1D, t_1D) < with_memory(-t_1D, -s_1D)


def test_negatives_are_uniform_over_other_classes() -> None:
    loss = small(negatives=20_000)
    drawn_BK = loss.draw_negatives(TARGETS, IDS)
    for target, drawn_K in zip(TARGETS.tolist(), drawn_BK, strict=True):
        others = [n for n, label in enumerate(LABELS.tolist()) if label not in (target, -1)]
        counts = drawn_K.bincount(minlength=12)
        assert counts[others].sum() == 20_000
        spread = (counts[others] - 20_000 / len(others)).abs().max()
        assert spread < 5 * (20_000 / len(others)) ** 0.5


def test_negatives_change_with_step_sample_and_seed() -> None:
    loss = small(negatives=50)
    first_BK = loss.draw_negatives(TARGETS, IDS)
    assert torch.equal(first_BK, loss.draw_negatives(TARGETS, IDS))
    assert not torch.equal(first_BK, small(negatives=50, seed=1).draw_negatives(TARGETS, IDS))
    same_class = loss.draw_negatives(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 3]))
    assert not torch.equal(*same_class)
    loss(*features(), TARGETS, IDS)
    assert not torch.equal(first_BK, loss.draw_negatives(TARGETS, IDS))


def test_z_is_that_of_the_first_training_batch() -> None:
    loss = small().eval()
    run(loss, range(1))
    assert loss.log_z.isinf().all()
    run(loss.train(), range(1))
    first_2 = loss.log_z.clone()
    assert first_2.isfinite().all()
    run(loss, range(1, 3))
    assert torch.equal(loss.log_z, first_2)


def test_state_is_all_there_is_to_resume() -> None:
    whole, stopped, resumed = small(), small(), small()
    expected = run(whole, range(4))
    run(stopped, range(2))
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed, range(2, 4)) == expected[2:]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_eval_mode_changes_nothing() -> None:
    loss = small()
    run(loss, range(1))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert len({*run(loss.eval(), range(1)), *run(loss, range(1))}) == 1
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_gradient_flows_into_student_and_embeddings_alone() -> None:
    loss = small()
    run(loss, range(1))
    loss.eval()
    student_BF, teacher_BF = features(1)
    torch.autograd.gradcheck(lambda s: loss(s, teacher_BF, TARGETS, IDS), student_BF)
    loss.train()(student_BF, teacher_BF.requires_grad_(), TARGETS, IDS).backward()
    assert teacher_BF.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_is_finite_at_extremes(dtype: torch.dtype, scale: float) -> None:
    student_BF, teacher_BF = (scale * part.detach().to(dtype) for part in features())
    student_BF.requires_grad_()
    loss = small(temperature=0.01).to(torch.promote_types(dtype, torch.float32))
    for _ in range(2):
        assert_finite(loss(student_BF, teacher_BF, TARGETS, IDS), student_BF, *loss.parameters())


def test_stays_in_float32_under_autocast() -> None:
    student_BF, teacher_BF = (part.float() for part in features())
    with torch.autocast("cpu", torch.bfloat16):
        value = small().float()(student_BF, teacher_BF, TARGETS, IDS)
    torch.testing.assert_close(value, small().float()(student_BF, teacher_BF, TARGETS, IDS))


def test_compiles_in_one_graph() -> None:
    loss, compiled = small(), small()
    steps = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(2):
        student_BF, teacher_BF = features(step)
        value, expected = (f(student_BF, teacher_BF, TARGETS, IDS) for f in (steps, loss))
        torch.testing.assert_close(value, expected)
        gradients = (torch.autograd.grad(v, student_BF) for v in (value, expected))
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(compiled.state_dict(), loss.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_draws_the_same_in_machine_code() -> None:
    loss, ids = small(negatives=64), torch.arange(20) % 12
    targets = LABELS[ids].clamp(min=0)
    drawn = torch.compile(loss.draw_negatives, dynamic=False)(targets, ids)
    assert torch.equal(drawn, loss.draw_negatives(targets, ids))


def test_steps_of_sgd_lower_it() -> None:
    torch.manual_seed(0)
    loss = ContrastiveLoss(6, 6, LABELS, seed=0, **SETTINGS)
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    ids = (LABELS >= 0).nonzero()[:, 0]
    student_BF = torch.randn(len(ids), 6)
    values = []
    for _ in range(60):
        values.append(loss(student_BF, student_BF.flip(1), LABELS[ids], ids))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


def test_example_runs() -> None:
    result = doctest.testmod(crd, extraglobs={"torch": torch})
    assert (result.attempted >= 3, result.failed) == (True, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "dimensions and negatives must be at least 1, got 4 and 0"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
    ],
)
def test_refuses_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_refuses_labels() -> None:
    with pytest.raises(ConfigError, match="labels must hold at least 2 classes"):
        ContrastiveLoss(3, 6, torch.tensor([2, 2, -1]), seed=0)
    with pytest.raises(ConfigError, match=r"labels must be int64 class indices of shape \(samples,\), got torch.float"):
        ContrastiveLoss(3, 6, LABELS.float(), seed=0)


def test_refuses_other_shapes() -> None:
    student_BF, teacher_BF = features()
    with pytest.raises(ConfigError, match=r"teacher features must have .* = \(4, 6\), got \(4, 3\)"):
        small()(student_BF, student_BF, TARGETS, IDS)
    with pytest.raises(ConfigError, match=r"student features must have .* = \(4, 3\), got \(4, 3, 1, 1\)"):
        small()(student_BF[..., None, None], teacher_BF, TARGETS, IDS)
    with pytest.raises(
        ConfigError, match=r"targets must be int64 of shape \(4,\), got torch.float32 of shape \(4, 3\)"
    ):
        small()(student_BF, teacher_BF, torch.zeros(4, 3), IDS)
