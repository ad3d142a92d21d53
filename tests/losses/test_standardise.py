from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import assert_finite, extreme_inputs, golden_inputs, numpy_of, random_inputs

from disk_kd.errors import ConfigError
from disk_kd.losses import kd_loss
from disk_kd.losses.standardise import standardise

TEMPERATURES = {"student_temperature": 2.0, "teacher_temperature": 2.0}


def slow_standardise(logits_BC: np.ndarray) -> np.ndarray:
    rows = []
    for row in logits_BC:
        mean = sum(row) / len(row)
        sigma = np.sqrt(sum((x - mean) ** 2 for x in row) / len(row))
        rows.append([(x - mean) / sigma for x in row])
    return np.array(rows)


def test_agrees_with_slow_loop() -> None:
    logits_BC, *_ = random_inputs()
    expected_BC = slow_standardise(*numpy_of(logits_BC))
    np.testing.assert_allclose(standardise(logits_BC).detach().numpy(), expected_BC, atol=1e-12)


def test_agrees_with_frozen_numbers() -> None:
    student_BC, teacher_BC, *_ = golden_inputs({"B": 6, "C": 10, "seed": 0})
    z_BC = standardise(student_BC)
    loss = 9 * kd_loss(z_BC, standardise(teacher_BC), **TEMPERATURES)
    (gradient_BC,) = torch.autograd.grad(loss, student_BC)
    assert z_BC[0, :6].tolist() == pytest.approx(
        [
            0.021410735343206335,
            1.4040622028996614,
            0.7611260312780431,
            -0.9654947818567314,
            -1.2462967002198821,
            0.33009574443953205,
        ],
        abs=1e-9,
    )
    assert loss.item() == pytest.approx(7.978095733795942, abs=1e-9)
    assert gradient_BC[0, :6].tolist() == pytest.approx(
        [
            -0.0706812841542767,
            0.10322854364299086,
            0.09267134209084137,
            0.03828978876897265,
            -0.013674730101056323,
            -0.08538591201322902,
        ],
        abs=1e-9,
    )


def test_rows_have_mean_zero_and_deviation_one() -> None:
    z_BC = standardise(random_inputs()[0])
    torch.testing.assert_close(z_BC.mean(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(z_BC.std(1, correction=0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(standardise(z_BC), z_BC)


def test_makes_a_loss_ignore_the_size_of_logits() -> None:
    logits_BC, *_ = random_inputs()
    loss = kd_loss(standardise(logits_BC), standardise(3 * logits_BC + 5), **TEMPERATURES)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(standardise(-logits_BC), -standardise(logits_BC))


def test_gradient_flows() -> None:
    torch.autograd.gradcheck(standardise, random_inputs()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    student_BC, teacher_BC, *_ = extreme_inputs(dtype, 0.0)
    assert_finite(kd_loss(standardise(student_BC), standardise(teacher_BC), **TEMPERATURES), student_BC)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4 / 3])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_constant_row_gives_zeros_and_no_gradient(value: float, eps: float) -> None:
    logits_BC = torch.full((2, 7), value, requires_grad=True)
    z_BC = standardise(logits_BC, eps=eps)
    (gradient_BC,) = torch.autograd.grad((z_BC * torch.arange(7)).sum(), logits_BC)
    assert not z_BC.any()
    assert not gradient_BC.any()


def test_eps_is_the_deviation_up_to_which_a_row_is_constant() -> None:
    logits_BC = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    assert standardise(logits_BC, eps=2.0).tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_refuses_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match=r"logits must have shape \(batch, classes\), got \(5,\)"):
        standardise(torch.zeros(5))
    with pytest.raises(ConfigError, match=r"eps must be finite and at least 0, got -1\.0"):
        standardise(torch.zeros(2, 5), eps=-1.0)
