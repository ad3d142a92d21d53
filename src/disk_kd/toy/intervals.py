"""The 1-D toy problem: a teacher of two intervals, a student of one.

x lies in [0, 9] and is positive on [2, 3] and [5, 7]. The student predicts sigmoid(k (x - a)) sigmoid(k (a + w - x)),
so its loss is a surface over the interval's start a and width w. Shape letters: S starts, N points, P = 2 parameters a,
w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from torch.func import vmap

from disk_kd.toy.forms import Form, constant, exact, kd, paper
from disk_kd.toy.minimise import CHUNK, Objective, equal_ends, is_minimum, minimise

PIECES = ((0, 2, 5, 0), (2, 3, 4, 1), (3, 5, 5, 0), (5, 7, 10, 1), (7, 9, 6, 0))
"""Start, end, mass in 30ths, and class of each segment."""
SHARPNESS = 8.0
"""The sharpness k of the intervals' edges."""
BOUNDS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
"""Constant help g, which bounds KD's logarithm at log g."""
_SIDE = 51
_FAR = 8.0


@dataclass(frozen=True)
class Row:
    """A form, on all examples or without those in [2, 3]."""

    form: Form
    censored: bool = False

    @property
    def title(self) -> str:
        return self.form.title + (", without [2, 3]" if self.censored else "")


ROWS = (
    Row(kd()),
    *(Row(constant(help)) for help in (0.01, 0.1, 1.0)),
    *(Row(exact(price)) for price in (0.0, 0.1, 1.0)),
    Row(paper(0.1)),
    Row(paper(1.0)),
    Row(paper(5.0, budget=0.4)),
    Row(kd(), censored=True),
    Row(constant(0.01), censored=True),
)


def points(per_mass: int) -> tuple[Tensor, Tensor]:
    """x (N,) and its classes (N,): midpoints, `per_mass` for each 30th of the mass, so that a mean weights by mass."""
    places, classes = [], []
    for low, high, mass, label in PIECES:
        count = mass * per_mass
        places.append(low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
        classes.append(torch.full((count,), label))
    return torch.cat(places), torch.cat(classes)


def interval(start: Tensor, width: Tensor, x_N: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 - s) and log s of one soft interval, (N,) each."""
    left_N, right_N = SHARPNESS * (x_N - start), SHARPNESS * (start + width - x_N)
    inside_N = F.logsigmoid(left_N) + F.logsigmoid(right_N)
    outside_N = torch.logaddexp(F.logsigmoid(-left_N), F.logsigmoid(left_N) + F.logsigmoid(-right_N))
    return outside_N, inside_N


def student_logits(parameters_P: Tensor, x_N: Tensor) -> Tensor:
    """(N, 2): the logarithms of the student's probabilities."""
    return torch.stack(interval(parameters_P[0], parameters_P[1], x_N), dim=1)


def teacher_logits(x_N: Tensor) -> Tensor:
    """(N, 2): positive in either interval, each as soft as the student's."""
    (out_1, in_1), (out_2, in_2) = (
        interval(x_N.new_tensor(low), x_N.new_tensor(high - low), x_N) for low, high, _, label in PIECES if label
    )
    return torch.stack([out_1 + out_2, torch.logaddexp(in_1, in_2 + out_1)], dim=1)


def objective(row: Row, per_mass: int = 6) -> Objective:
    """The row's loss as a function of (a, w)."""
    x_N, targets_N = points(per_mass)
    if row.censored:
        kept_N = (x_N < 2) | (x_N > 3)
        x_N, targets_N = x_N[kept_N], targets_N[kept_N]
    teacher_N2 = teacher_logits(x_N)
    return lambda parameters_P: row.form.loss(student_logits(parameters_P, x_N), teacher_N2, targets_N)


def accuracy(parameters_SP: Tensor) -> Tensor:
    """(S,) the mass on which student and label agree."""
    x_N, targets_N = points(100)
    right_SN = vmap(lambda p: student_logits(p, x_N))(parameters_SP).argmax(2) == targets_N
    return right_SN.double().mean(1)


def draw_starts(count: int, seed: int) -> Tensor:
    """(S, 2): intervals drawn uniformly from all intervals in [0, 9]."""
    drawn_S2 = 9 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(drawn_S2.sum(1, keepdim=True) > 9, 9 - drawn_S2, drawn_S2)


def solve(starts: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The minima of every row, and its loss surface.

    Returns:
        The result as docs/toy.md describes it, and {"a", "w", title: losses over a, then w}.
    """
    starts_SP = draw_starts(starts, seed)
    kd_end_1P = minimise(objective(ROWS[0]), starts_SP[:1])[0]
    axis = torch.linspace(0, _FAR, _SIDE, dtype=torch.float64)
    grid_SP = torch.cartesian_prod(axis, axis)
    surfaces: dict[str, Any] = {"a": axis.tolist(), "w": axis.tolist()}
    for row in ROWS:
        losses_S = vmap(objective(row), chunk_size=CHUNK)(grid_SP)
        surfaces[row.title] = losses_S.view(_SIDE, _SIDE).tolist()
    x_N, targets_N = points(100)
    result = {
        "teacher_accuracy": (teacher_logits(x_N).argmax(1) == targets_N).double().mean().item(),
        "forms": [_minima(row, starts_SP) | {"from_kd": _place(row, kd_end_1P)} for row in ROWS],
        "bounds": [
            {"help": help} | _minima(Row(constant(help), censored), starts_SP)
            for help in BOUNDS
            for censored in (False, True)
        ],
    }
    return result, surfaces


def _minima(row: Row, starts_SP: Tensor) -> dict[str, Any]:
    """The minima with the number of starts that end there, and the number of starts that stay on a plateau."""
    loss = objective(row)
    ends_SP, loss_S, _ = minimise(loss, starts_SP)
    stands_S, accuracy_S = is_minimum(loss, ends_SP), accuracy(ends_SP)
    minima = [
        {
            "a": ends_SP[group[0], 0].item(),
            "w": ends_SP[group[0], 1].item(),
            "loss": loss_S[group[0]].item(),
            "accuracy": accuracy_S[group[0]].item(),
            "starts": len(group),
        }
        for group in equal_ends(ends_SP, loss_S)
        if stands_S[group[0]]
    ]
    return {
        "title": row.title,
        "censored": row.censored,
        "minima": minima,
        "plateau_starts": len(starts_SP) - sum(minimum["starts"] for minimum in minima),
        "mean_accuracy": accuracy_S.mean().item(),
    }


def _place(row: Row, start_1P: Tensor) -> dict[str, float]:
    """The end of this row from one start."""
    end_1P = minimise(objective(row), start_1P)[0]
    return {"a": end_1P[0, 0].item(), "w": end_1P[0, 1].item(), "accuracy": accuracy(end_1P).item()}


def tables(result: dict[str, Any]) -> list[Table]:
    """The minima of each form, and those of KD with a bounded logarithm."""
    count = result["starts"]
    main = Table(title="1-D intervals", caption=f"Of {count} starts: the share that ends in each minimum, the mean.")
    main.add_column("loss")
    main.add_column("minima: accuracy (a, w) share", no_wrap=True)
    for name in ("plateau", "mean", "from KD's"):
        main.add_column(name, justify="right")
    for form in result["forms"]:
        main.add_row(
            form["title"],
            _cells(form["minima"], count),
            f"{form['plateau_starts'] / count:.0%}",
            f"{form['mean_accuracy']:.1%}",
            f"{form['from_kd']['accuracy']:.1%}",
        )
    bounds = Table(title="KD with log(s + g): the minima as g falls")
    for name in ("g", "all examples", "without [2, 3]"):
        bounds.add_column(name)
    for whole, cut in zip(result["bounds"][::2], result["bounds"][1::2], strict=True):
        bounds.add_row(f"{whole['help']:g}", _cells(whole["minima"], count), _cells(cut["minima"], count))
    return [main, bounds]


def _cells(minima: Sequence[dict[str, Any]], count: int) -> str:
    return "\n".join(f"{m['accuracy']:.1%} ({m['a']:.2f}, {m['w']:.2f}) {m['starts'] / count:>4.0%}" for m in minima)
