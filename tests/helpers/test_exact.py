from __future__ import annotations

import doctest
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.helpers import UNITS, exact_helper
from disk_kd.losses import scaffolded_kl

TEMPERATURES = {"student_temperature": 3.0, "teacher_temperature": 2.0}
SETTINGS = {"top_k": 4, "max_ce": 3.0, **TEMPERATURES}
PRICES = [0.0, 0.1, 1.0, 3.0]


def random_inputs(scale: float = 3.0, seed: int = 0, batch: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits (both (B, 12) float64) and targets."""
    generator = torch.Generator().manual_seed(seed)
    student_BC, teacher_BC = scale * torch.randn(2, batch, 12, generator=generator, dtype=torch.float64)
    return student_BC, teacher_BC, torch.randint(12, (batch,), generator=generator)


def slow_objective(
    student: np.ndarray, teacher: np.ndarray, target: int, helper_G: np.ndarray, price: float
) -> np.ndarray:
    """KL(t || q(g)) + price g min(CE, 3) of one image, for each g of a grid."""
    log_s = student / 3.0 - np.logaddexp.reduce(student / 3.0)
    t = np.exp(teacher / 2.0 - np.logaddexp.reduce(teacher / 2.0))
    members = {int(k) for k in np.argsort(-teacher)[:4]} | {target}
    values_G = price * helper_G * min(np.logaddexp.reduce(student) - student[target], 3.0)
    for y in range(len(t)):
        q_G = (np.exp(log_s[y]) + helper_G * (y in members)) / (1 + len(members) * helper_G)
        values_G = values_G + t[y] * np.log(t[y] / q_G)
    return values_G


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_no_point_of_a_fine_grid_is_better(price: float, scale: float) -> None:
    student_BC, teacher_BC, targets_B = random_inputs(scale)
    help_B = exact_helper(student_BC, teacher_BC, targets_B, price=price, **SETTINGS)
    grid_G = np.concatenate([[0.0], np.geomspace(1e-9, 1.0, 20001), np.linspace(0, 1, 20001)])
    for student, teacher, target, g in zip(student_BC, teacher_BC, targets_B, help_B, strict=True):
        row = (student.numpy(), teacher.numpy(), int(target))
        grid = slow_objective(*row, grid_G, price)
        found = slow_objective(*row, np.array([g.item()]), price)[0]
        assert found <= grid.min() + 1e-12
        # The grid's best point lies within its own step of the true one.
        assert g.item() == pytest.approx(grid_G[grid.argmin()], abs=1e-3)


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("scale", [3.0, 10.0, 100.0])
def test_derivative_of_the_objective_has_the_sign_of_an_optimum(price: float, scale: float) -> None:
    student_BC, teacher_BC, targets_B = random_inputs(scale)
    help_B = exact_helper(student_BC, teacher_BC, targets_B, price=price, **SETTINGS).requires_grad_()
    ce_B = torch.nn.functional.cross_entropy(student_BC, targets_B, reduction="none").clamp(max=3.0)
    kl = scaffolded_kl(student_BC, teacher_BC, targets_B, help_B, top_k=4, **TEMPERATURES)
    (slope_B,) = torch.autograd.grad(len(help_B) * kl + price * (help_B * ce_B).sum(), help_B)
    inside_B = (help_B > 0) & (help_B < 1)
    # Near g = 0 the slope is a difference of terms as large as 1 / g.
    assert (slope_B * help_B)[inside_B].abs().max() < 1e-9
    assert (slope_B[help_B == 0] >= -1e-9).all()
    assert (slope_B[help_B == 1] <= 1e-9).all()
    assert inside_B.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e4])
def test_no_help_where_student_is_teacher(dtype: torch.dtype, scale: float) -> None:
    _, teacher_BC, targets_B = random_inputs(scale)
    same_BC = teacher_BC.to(dtype)
    settings = {**SETTINGS, "student_temperature": 2.0}
    assert (exact_helper(same_BC, same_BC, targets_B, price=0.0, **settings) == 0).all()


def test_no_help_where_help_changes_nothing() -> None:
    """A flat student with help on all classes stays flat, whatever g."""
    flat_BC = torch.zeros(3, 12)
    _, teacher_BC, targets_B = random_inputs(batch=3)
    help_B = exact_helper(flat_BC, teacher_BC.float(), targets_B, price=0.0, **{**SETTINGS, "top_k": 12})
    assert (help_B == 0).all()


def test_a_hopeless_student_takes_all_help_when_it_is_free_and_none_when_it_is_dear() -> None:
    teacher_BC = torch.tensor([[0.0, 90.0, 90.0, 0.0]])
    student_BC = torch.tensor([[200.0, 0.0, 0.0, 0.0]])
    settings = {"top_k": 2, "max_ce": 5.0, "student_temperature": 1.0, "teacher_temperature": 1.0}
    targets_B = torch.tensor([1])
    assert exact_helper(student_BC, teacher_BC, targets_B, price=0.0, **settings) == 1
    assert 0 < exact_helper(student_BC, teacher_BC, targets_B, price=1.0, **settings) < 1
    assert exact_helper(student_BC, teacher_BC, targets_B, price=1e8, **settings) < 1e-8
    # A student that has some hope gets none at all.
    assert exact_helper(student_BC / 20, teacher_BC, targets_B, price=1e8, **settings) == 0


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_help_falls_as_its_price_rises(scale: float) -> None:
    inputs = random_inputs(scale)
    prices = [0.0, *np.geomspace(1e-3, 1e3, 25)]
    help_PB = torch.stack([exact_helper(*inputs, price=price, **SETTINGS) for price in prices])
    assert (help_PB.diff(dim=0) <= 1e-9).all()
    assert (help_PB[0] > 0.01).any()


def test_ignores_shifts_and_class_order() -> None:
    student_BC, teacher_BC, targets_B = random_inputs()
    expected_B = exact_helper(student_BC, teacher_BC, targets_B, price=0.3, **SETTINGS)
    shift_B1 = torch.arange(40.0)[:, None]
    shifted_B = exact_helper(student_BC - shift_B1, teacher_BC + 2 * shift_B1, targets_B, price=0.3, **SETTINGS)
    torch.testing.assert_close(shifted_B, expected_B, atol=1e-9, rtol=0)
    order_C = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    renamed_B = order_C.argsort()[targets_B]
    permuted_B = exact_helper(student_BC[:, order_C], teacher_BC[:, order_C], renamed_B, price=0.3, **SETTINGS)
    torch.testing.assert_close(permuted_B, expected_B, atol=1e-9, rtol=0)


def test_an_image_does_not_depend_on_its_batch() -> None:
    student_BC, teacher_BC, targets_B = random_inputs()
    together_B = exact_helper(student_BC, teacher_BC, targets_B, price=0.3, **SETTINGS)
    alone_B = exact_helper(student_BC[7:8], teacher_BC[7:8], targets_B[7:8], price=0.3, **SETTINGS)
    torch.testing.assert_close(alone_B, together_B[7:8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("price", [0.0, 1.0, 1e30])
def test_is_finite_at_extreme_logits(dtype: torch.dtype, price: float) -> None:
    student_BC, teacher_BC, targets_B = random_inputs(batch=60)
    for student_scale, teacher_scale in ((1e4, 1e4), (1e4, 0.0), (0.0, 1e4), (1.0, 1e4), (1e4, 1.0)):
        student = (student_scale * student_BC.sign()).to(dtype)
        teacher = (teacher_scale * teacher_BC.sign()).to(dtype)
        help_B = exact_helper(student, teacher, targets_B, price=price, **SETTINGS)
        assert help_B.dtype == torch.promote_types(dtype, torch.float32)
        assert ((help_B >= 0) & (help_B <= 1)).all()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_float32_is_as_good_as_float64(scale: float) -> None:
    student_BC, teacher_BC, targets_B = random_inputs(scale)
    double_B = exact_helper(student_BC, teacher_BC, targets_B, price=0.3, **SETTINGS)
    single_B = exact_helper(student_BC.float(), teacher_BC.float(), targets_B, price=0.3, **SETTINGS)
    torch.testing.assert_close(single_B.double(), double_B, atol=1e-4, rtol=0)


def test_takes_its_price_from_the_device_and_keeps_no_gradient() -> None:
    student_BC, teacher_BC, targets_B = random_inputs()
    student_BC.requires_grad_()
    price = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    help_B = exact_helper(student_BC, teacher_BC, targets_B, price=price, **SETTINGS)
    assert not help_B.requires_grad
    assert torch.equal(help_B, exact_helper(student_BC, teacher_BC, targets_B, price=0.3, **SETTINGS))


def test_compiles_in_one_graph() -> None:
    inputs = random_inputs()
    compiled = torch.compile(exact_helper, fullgraph=True, backend="aot_eager")
    for price in (torch.tensor(0.0), torch.tensor(0.3)):
        expected_B = exact_helper(*inputs, price=price, **SETTINGS)
        torch.testing.assert_close(compiled(*inputs, price=price, **SETTINGS), expected_B)


def test_example_runs() -> None:
    module = importlib.import_module("disk_kd.helpers.exact")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted == 3
    assert result.failed == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 13}, "top_k must be from 0 to the 12 classes, got 13"),
        ({"teacher_temperature": 0.0}, r"teacher_temperature must be finite and above 0, got 0\.0"),
        ({"max_ce": -1.0}, r"max_ce must be above 0, got -1\.0"),
    ],
)
def test_refuses_values(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        exact_helper(*random_inputs(), price=0.0, **{**SETTINGS, **changed})


SUPPORTS = [{"mass": 0.5}, {"outside_student": True}, {"top_k": 0}]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("changed", [{}, *SUPPORTS])
def test_no_help_is_better_in_any_unit_and_support(unit: Any, changed: dict[str, Any]) -> None:
    student_BC, teacher_BC, targets_B = random_inputs(batch=8)
    settings = SETTINGS | changed
    about = {name: value for name, value in settings.items() if name != "max_ce"}
    price = 0.2
    help_B = exact_helper(student_BC, teacher_BC, targets_B, price=price, unit=unit, **settings)
    ce_B = torch.nn.functional.cross_entropy(student_BC, targets_B, reduction="none").clamp(max=settings["max_ce"])
    grid_G = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 1500)]).double()

    def objective(index: int, g_G: torch.Tensor) -> torch.Tensor:
        rows = [tensor[index].expand(len(g_G), *tensor.shape[1:]) for tensor in (student_BC, teacher_BC, targets_B)]
        divergence_G = torch.stack(
            [scaffolded_kl(*(row[i : i + 1] for row in rows), g_G[i : i + 1], **about) for i in range(len(g_G))]
        )
        return divergence_G + price * {"ce": g_G * ce_B[index], "help": g_G, "examples": (g_G > 0).double()}[unit]

    for index in range(8):
        assert objective(index, help_B[index : index + 1]) <= objective(index, grid_G).min() + 1e-9
    assert (help_B > 0).any()


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown unit 'nats' of help; valid: ce, help, examples"):
        exact_helper(*random_inputs(), price=0.0, unit="nats", **SETTINGS)  # type: ignore[arg-type]


def test_whole_shares_are_labels_and_of_two_no_other_help_is_better() -> None:
    student_BC, teacher_BC, targets_B = random_inputs()
    shares_BC = torch.nn.functional.one_hot(targets_B, student_BC.shape[1]).to(student_BC)
    by_label = exact_helper(student_BC, teacher_BC, targets_B, price=0.1, **SETTINGS)
    torch.testing.assert_close(exact_helper(student_BC, teacher_BC, shares_BC, price=0.1, **SETTINGS), by_label)
    mixed_BC = 0.6 * shares_BC + 0.4 * shares_BC.roll(1, 0)
    g_B = exact_helper(student_BC, teacher_BC, mixed_BC, price=0.1, **SETTINGS)
    ce_B = torch.nn.functional.cross_entropy(student_BC, mixed_BC, reduction="none").clamp(max=SETTINGS["max_ce"])
    keywords = {"top_k": SETTINGS["top_k"], **TEMPERATURES}

    def objective(help_B: Tensor) -> Tensor:
        rows = zip(student_BC, teacher_BC, mixed_BC, help_B, strict=True)
        kl = [scaffolded_kl(*(part[None] for part in row), **keywords) for row in rows]
        return torch.stack(kl) + 0.1 * help_B * ce_B

    best_B = objective(g_B)
    for help in torch.linspace(0, 1, 21):
        assert (best_B <= objective(torch.full_like(g_B, float(help))) + 1e-6).all()


def test_all_help_where_the_slope_at_one_is_rounding() -> None:
    """A sure, wrong student: F(1) = -1 / (0 + 1) + 1 / (1 + 1) + .1 * 5 = 0."""
    student_BC = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    once = {"student_temperature": 1.0, "teacher_temperature": 1.0, "top_k": 0, "max_ce": 5.0}
    assert exact_helper(student_BC, -student_BC, torch.tensor([1]), price=0.1, **once) == 1
