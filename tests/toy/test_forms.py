"""The toy problems' losses agree with the package's, and their help is the best there is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.losses import kd_loss, scaffolded_nll
from disk_kd.toy.forms import Form, best_help, constant, exact, kd, paper

T1 = {"student_temperature": 1.0, "teacher_temperature": 1.0}


def inputs(classes: int = 3, batch: int = 30, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student_BC, teacher_BC = 4 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return student_BC, teacher_BC, torch.randint(classes, (batch,), generator=generator)


def test_kd_is_the_packages() -> None:
    student_BC, teacher_BC, targets_B = inputs()
    torch.testing.assert_close(kd().loss(student_BC, teacher_BC, targets_B), kd_loss(student_BC, teacher_BC, **T1))


def test_constant_help_differs_between_the_forms_by_a_constant() -> None:
    _, teacher_BC, targets_B = inputs()
    help_B = torch.full((30,), 0.1, dtype=torch.float64)
    differences = [
        constant(0.1).loss(student_BC, teacher_BC, targets_B)
        - scaffolded_nll(student_BC, teacher_BC, targets_B, help_B, top_k=3, **T1)
        for student_BC in (inputs(seed=1)[0], inputs(seed=2)[0])
    ]
    torch.testing.assert_close(differences[0], differences[1])


@pytest.mark.parametrize("price", [0.0, 0.05, 0.7, 20.0])
def test_best_help_beats_every_other(price: float) -> None:
    student_BC, teacher_BC, targets_B = inputs()
    cost_B = price * F.cross_entropy(student_BC, targets_B, reduction="none")
    s_BC, t_BC = student_BC.softmax(1), teacher_BC.softmax(1)

    def value(help_B: Tensor) -> Tensor:
        return -(t_BC * (s_BC + help_B[:, None]).log()).sum(1) + cost_B * help_B

    best_B = value(best_help(student_BC, teacher_BC, cost_B))
    for help in torch.cat([torch.logspace(-8, 0, 400, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]):
        assert (best_B <= value(help.expand(30)) + 1e-9).all()


def test_the_budget_is_held_or_its_price_is_paid() -> None:
    """min over g of nll + price max(0, used - budget) is the highest of its duals, over prices up to that price."""
    arguments = inputs()
    duals = [paper(price).loss(*arguments) - price * 0.4 for price in torch.linspace(0.01, 5, 500).tolist()]
    torch.testing.assert_close(paper(5.0, budget=0.4).loss(*arguments), torch.stack(duals).max(), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("form", [kd(), constant(0.1), exact(0.1), paper(1.0), paper(5.0, budget=0.4)])
def test_the_gradient_is_that_of_the_surface(form: Form) -> None:
    """Though the help is held while the student moves: where it is best its own change costs nothing."""
    student_BC, teacher_BC, targets_B = inputs(batch=6)
    student_BC.requires_grad_()
    assert torch.autograd.gradcheck(lambda s_BC: form.loss(s_BC, teacher_BC, targets_B), student_BC, atol=1e-4)
