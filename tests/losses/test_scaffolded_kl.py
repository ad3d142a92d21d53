from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import (
    OWN,
    assert_finite,
    assert_invariant,
    assert_teacher_is_spared,
    extreme_inputs,
    golden_inputs,
    numpy_of,
    random_inputs,
    softmax_row,
    support_row,
)

from disk_kd.errors import ConfigError
from disk_kd.losses import kd_loss, scaffolded_kl

TEMPERATURES = {"student_temperature": 3.0, "teacher_temperature": 2.0}
SETTINGS = {"top_k": 3, **TEMPERATURES}


def slow_kl(student_BC: np.ndarray, teacher_BC: np.ndarray, targets_B: np.ndarray, helper_B: np.ndarray) -> float:
    total = 0.0
    for student, teacher, target, g in zip(student_BC, teacher_BC, targets_B, helper_B, strict=True):
        members = support_row(teacher, target, 3)
        q, t = softmax_row(student, 3.0), softmax_row(teacher, 2.0)
        q[members] += g
        q /= 1 + len(members) * g
        assert q.sum() == pytest.approx(1)
        total += sum(t[y] * np.log(t[y] / q[y]) for y in range(len(t)))
    return total / len(student_BC)


def test_agrees_with_slow_loop() -> None:
    inputs = random_inputs()
    assert scaffolded_kl(*inputs, **SETTINGS).item() == pytest.approx(slow_kl(*numpy_of(*inputs)), abs=1e-12)


@pytest.mark.parametrize("settings", [{"top_k": 5, "mass": 0.6}, {"top_k": 2, "outside_student": True}, {"top_k": 0}])
def test_other_supports_agree_with_slow_loop(settings: dict[str, Any]) -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    found = scaffolded_kl(student_BC, teacher_BC, targets_B, helper_B, **TEMPERATURES, **settings)
    total, sizes = 0.0, set()
    for student, teacher, target, g in zip(*numpy_of(student_BC, teacher_BC, targets_B, helper_B), strict=True):
        q, t = softmax_row(student, 3.0), softmax_row(teacher, 2.0)
        if "outside_student" in settings:
            members = set(np.argsort(student)[:-2].tolist())
        else:
            order = np.argsort(-teacher)[: settings["top_k"]]
            before = np.cumsum(t[order]) - t[order]
            members = set(order[before < settings.get("mass", 1.0)].tolist())
        members |= {int(target)}
        sizes.add(len(members))
        q[list(members)] += g
        q /= 1 + len(members) * g
        total += sum(t[y] * np.log(t[y] / q[y]) for y in range(len(t)))
    assert found.item() == pytest.approx(total / len(student_BC), abs=1e-12)
    assert len(sizes) > 1 or "mass" not in settings
    with pytest.raises(ConfigError, match="mass must be above 0 and at most 1, got 0"):
        scaffolded_kl(student_BC, teacher_BC, targets_B, helper_B, **SETTINGS, mass=0.0)


@pytest.mark.parametrize("case", OWN)
def test_agrees_with_frozen_numbers(case: dict[str, Any]) -> None:
    inputs = golden_inputs(case)
    loss = scaffolded_kl(
        *inputs, top_k=case["top_k"], student_temperature=case["T_student"], teacher_temperature=case["T_teacher"]
    )
    gradient_BC, gradient_B = torch.autograd.grad(loss, (inputs[0], inputs[3]))
    frozen = case["scaffolded_kl"]
    assert loss.item() == pytest.approx(frozen["loss"], abs=1e-9)
    assert gradient_BC.norm().item() == pytest.approx(frozen["grad_s_norm"], abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(frozen["grad_s_row0"], abs=1e-9)
    assert gradient_B[:6].tolist() == pytest.approx(frozen["grad_g"], abs=1e-9)


def test_without_help_is_kd_without_its_factor() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    loss = scaffolded_kl(student_BC, teacher_BC, targets_B, 0 * helper_B, **SETTINGS)
    kd = kd_loss(student_BC, teacher_BC, **TEMPERATURES) / 6.0
    torch.testing.assert_close(loss, kd)
    torch.testing.assert_close(torch.autograd.grad(loss, student_BC), torch.autograd.grad(kd, student_BC))


def test_zero_at_student_teacher_where_help_can_only_harm() -> None:
    student_BC, _, targets_B, helper_B = random_inputs()
    none_B = torch.zeros_like(helper_B, requires_grad=True)
    settings = {"top_k": 3, "student_temperature": 2.0, "teacher_temperature": 2.0}
    loss = scaffolded_kl(student_BC, student_BC, targets_B, none_B, **settings)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert (torch.autograd.grad(loss, none_B)[0] >= -1e-12).all()
    assert scaffolded_kl(student_BC, student_BC, targets_B, helper_B, **settings) > 0.01


def test_help_on_all_classes_mixes_with_the_uniform() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    loss = scaffolded_kl(student_BC, teacher_BC, targets_B, helper_B, top_k=8, **TEMPERATURES)
    share_B1 = (8 * helper_B / (1 + 8 * helper_B))[:, None]
    q_BC = (1 - share_B1) * (student_BC / 3.0).softmax(1) + share_B1 / 8
    t_BC = (teacher_BC / 2.0).softmax(1)
    torch.testing.assert_close(loss, (t_BC * (t_BC / q_BC).log()).sum(1).mean())


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("helper", [0.0, 1e-8, 0.1, 1.0])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1.0])
def test_is_never_negative_in_float32(scale: float, helper: float, distance: float) -> None:
    for seed in range(20):
        student_BC, other_BC, targets_B, helper_B = (x.detach() for x in random_inputs(classes=20, seed=seed))
        student_BC, teacher_BC = scale * student_BC.float(), (scale * (student_BC + distance * other_BC)).float()
        help_B = torch.full_like(helper_B, helper, dtype=torch.float32)
        loss = scaffolded_kl(
            student_BC, teacher_BC, targets_B, help_B, top_k=3, student_temperature=2.0, teacher_temperature=2.0
        )
        assert loss >= 0


def test_gradient_survives_where_rounding_made_the_value_negative() -> None:
    """Uniform help leaves a uniform student as it is: the value is rounding alone, the gradient (q - t) / 2 B."""
    student_BC = torch.full((2, 7), 0.3, requires_grad=True)
    teacher_BC = torch.zeros(2, 7)
    teacher_BC[:, 0] = 1e-4
    help_B = torch.full((2,), 0.37)
    targets_B = torch.zeros(2, dtype=torch.int64)
    loss = scaffolded_kl(
        student_BC, teacher_BC, targets_B, help_B, top_k=7, student_temperature=2.0, teacher_temperature=2.0
    )
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert loss >= 0
    assert gradient_BC[0, 0].item() == pytest.approx(-5e-5 * 6 / 49 / 4 / (1 + 7 * 0.37), rel=0.02)


def test_ignores_shifts_and_class_order() -> None:
    assert_invariant(lambda s, t, y, g: scaffolded_kl(s, t, y, g, **SETTINGS))


def test_gradient_flows_into_student_and_helper_alone() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    torch.autograd.gradcheck(
        lambda s, g: scaffolded_kl(s, teacher_BC, targets_B, g, **SETTINGS), (student_BC, helper_B)
    )
    assert_teacher_is_spared(lambda s, t, y, g: scaffolded_kl(s, t, y, g, **SETTINGS))


def test_gradient_in_helper_is_right_at_zero() -> None:
    student_BC, teacher_BC, targets_B, _ = random_inputs()
    none_B = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    loss = scaffolded_kl(student_BC, teacher_BC, targets_B, none_B, **SETTINGS)
    (gradient_B,) = torch.autograd.grad(loss, none_B)
    for i in range(5):
        members = support_row(teacher_BC[i].numpy(), int(targets_B[i]), 3)
        s, t = (student_BC[i] / 3.0).softmax(0), (teacher_BC[i] / 2.0).softmax(0)
        assert 5 * gradient_B[i].item() == pytest.approx((len(members) - (t / s)[members].sum()).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("helper", [0.0, 1e-30, 0.3, 1.0])
def test_is_finite_at_extreme_logits(dtype: torch.dtype, helper: float) -> None:
    inputs = extreme_inputs(dtype, helper)
    loss = scaffolded_kl(*inputs, top_k=1, **TEMPERATURES)
    assert loss >= 0
    assert_finite(loss, inputs[0], inputs[3])


def test_stays_in_float32_under_autocast() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    inputs = (student_BC.float(), teacher_BC.float(), targets_B, helper_B.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = scaffolded_kl(*inputs, **SETTINGS)
    torch.testing.assert_close(loss, scaffolded_kl(*inputs, **SETTINGS))


@pytest.mark.parametrize("top_k", [-1, 9])
def test_refuses_top_k(top_k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k must be from 0 to the 8 classes, got {top_k}"):
        scaffolded_kl(*random_inputs(), top_k=top_k, **TEMPERATURES)


def test_refuses_other_shapes() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    with pytest.raises(ConfigError, match=r"helper must have shape \(5,\), got \(5, 1\)"):
        scaffolded_kl(student_BC, teacher_BC, targets_B, helper_B[:, None], **SETTINGS)
    with pytest.raises(ConfigError, match=r"int64 class indices of shape \(5,\), got torch.int64 of shape \(5, 1\)"):
        scaffolded_kl(student_BC, teacher_BC, targets_B[:, None], helper_B, **SETTINGS)


def test_whole_shares_are_labels_and_both_labels_may_be_helped() -> None:
    student_BC, teacher_BC, targets_B, helper_B = random_inputs()
    shares_BC = torch.nn.functional.one_hot(targets_B, student_BC.shape[1]).to(student_BC)
    by_label = scaffolded_kl(student_BC, teacher_BC, targets_B, helper_B, **SETTINGS)
    torch.testing.assert_close(scaffolded_kl(student_BC, teacher_BC, shares_BC, helper_B, **SETTINGS), by_label)
    # With no class of the teacher's, M is the two labels: written out for one image.
    alone = {**TEMPERATURES, "top_k": 0}
    mixed_BC = torch.zeros_like(student_BC)
    mixed_BC[:, 1], mixed_BC[:, 4] = 0.3, 0.7
    s = (student_BC / TEMPERATURES["student_temperature"]).softmax(1)
    t = (teacher_BC / TEMPERATURES["teacher_temperature"]).softmax(1)
    q = s.clone()
    q[:, [1, 4]] += helper_B[:, None]
    q = q / (1 + 2 * helper_B[:, None])
    expected = (t * (t / q).log()).sum(1).mean()
    torch.testing.assert_close(scaffolded_kl(student_BC, teacher_BC, mixed_BC, helper_B, **alone), expected)
