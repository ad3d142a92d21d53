"""The 2-D toy problem: six clusters of three classes, a teacher of three layers, and two small students of two layers.

The student is logits(x) = V tanh(W x + b) + c. Weight decay keeps its minima at finite weights, so that descent
converges. Shape letters: S starts, N examples, H hidden units, P = 6 H + 3 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.func import vmap

from disk_kd.toy.forms import Form, constant, exact, kd, paper
from disk_kd.toy.minimise import CHUNK, Objective, minimise

CLUSTERS = ((0.0, 0.0, 0), (1.5, 0.0, 1), (3.0, 0.0, 2), (0.0, 1.5, 1), (1.5, 1.5, 2), (3.0, 1.5, 0))
"""Centre and class of each cluster."""
SPREAD = 0.22
HIDDEN = (2, 3)
"""Hidden units of the two students. Surfaces are drawn for the first."""
LEVELS = (50, 60, 70, 80, 90, 100)
"""Accuracies in percent. Each start counts for the nearest level; the first level includes all below."""
DECAY = 1e-3
"""Weight decay of the losses that are compared."""
_PER_CLUSTER = 12
_SIDE = 61
_BEYOND = 0.6  # how far the drawn plane reaches past its three points, in their distances


@dataclass(frozen=True)
class Row:
    """A form with its weight decay."""

    form: Form
    decay: float = DECAY

    @property
    def title(self) -> str:
        return self.form.title + (f", decay {self.decay:g}" if self.decay != DECAY else "")


ROWS = (
    Row(kd()),
    *(Row(constant(help)) for help in (0.1, 1.0)),
    *(Row(exact(price)) for price in (0.1, 1.0)),
    Row(paper(1.0)),
    # The control of "help, then KD": any other loss that keeps the weights small at first.
    Row(kd(), decay=0.03),
)


@dataclass(frozen=True)
class Data:
    """Training examples with the teacher's logits, and a large sample for measuring accuracy."""

    x_N2: Tensor
    targets_N: Tensor
    teacher_N3: Tensor
    all_x_N2: Tensor
    all_targets_N: Tensor
    teacher: nn.Module


def sample(per_cluster: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Examples (N, 2), the same number of each cluster, and their classes (N,)."""
    centres_62 = torch.tensor([cluster[:2] for cluster in CLUSTERS], dtype=torch.float64)
    noise = torch.randn(6, per_cluster, 2, generator=generator, dtype=torch.float64)
    classes_6 = torch.tensor([cluster[2] for cluster in CLUSTERS])
    return (centres_62[:, None] + SPREAD * noise).reshape(-1, 2), classes_6.repeat_interleave(per_cluster)


def make_data(generator: torch.Generator) -> Data:
    """Draw the examples and train the teacher on them with cross-entropy."""
    x_N2, targets_N = sample(_PER_CLUSTER, generator)
    all_x_N2, all_targets_N = sample(200, generator)
    teacher = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for layer in teacher:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
                layer.bias.normal_(0, 0.5, generator=generator)
    optimiser = torch.optim.Adam(teacher.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(teacher(x_N2), targets_N).backward()
        optimiser.step()
    return Data(x_N2, targets_N, teacher(x_N2).detach(), all_x_N2, all_targets_N, teacher)


def draw_starts(count: int, hidden: int, generator: torch.Generator) -> Tensor:
    """(S, P) initial weights. The boundaries of hidden units pass near the clusters."""
    first = torch.randn(count, 3 * hidden, generator=generator, dtype=torch.float64)
    second = torch.randn(count, 3 * hidden, generator=generator, dtype=torch.float64) * hidden**-0.5
    return torch.cat([first, second, torch.zeros(count, 3, dtype=torch.float64)], dim=1)


def student_logits(parameters_P: Tensor, x_N2: Tensor) -> Tensor:
    """(N, 3)."""
    hidden = (len(parameters_P) - 3) // 6
    weight, bias, out, out_bias = parameters_P.split([2 * hidden, hidden, 3 * hidden, 3])
    centred_N2 = x_N2 - x_N2.new_tensor([1.5, 0.75])
    units_NH = torch.tanh(centred_N2 @ weight.view(2, hidden) + bias)
    return units_NH @ out.view(hidden, 3) + out_bias


def objective(row: Row, data: Data) -> Objective:
    """The row's loss with its weight decay, as a function of the student's parameters."""

    def loss(parameters_P: Tensor) -> Tensor:
        logits_N3 = student_logits(parameters_P, data.x_N2)
        decay = row.decay / 2 * parameters_P.square().sum()
        return row.form.loss(logits_N3, data.teacher_N3, data.targets_N) + decay

    return loss


def accuracy(parameters_SP: Tensor, data: Data) -> Tensor:
    """(S,) on the large sample."""
    logits_SN3 = vmap(lambda p: student_logits(p, data.all_x_N2))(parameters_SP)
    return (logits_SN3.argmax(2) == data.all_targets_N).double().mean(1)


def solve(starts: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The minima of each row for both students, and the loss surfaces through three minima of KD.

    Returns:
        The result as docs/toy.md describes it, and {"u", "v", "corners", title: losses over u, then v} with the data.
    """
    generator = torch.Generator().manual_seed(seed)
    data = make_data(generator)
    students, ends = [], []
    for hidden in HIDDEN:
        starts_SP = draw_starts(starts, hidden, generator)
        solved = [_ends(row, data, starts_SP) for row in ROWS]
        students.append({"hidden": hidden, "forms": [found for found, _ in solved]})
        ends.append(solved[0][1])
    x_N2, targets_N = data.all_x_N2, data.all_targets_N
    result = {
        "teacher_accuracy": (data.teacher(x_N2).argmax(1) == targets_N).double().mean().item(),
        "students": students,
    }
    return result, _surfaces(data, ends[0]) | _regions(data)


def _ends(row: Row, data: Data, starts_SP: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The accuracies at the ends of descent, and where plain KD leads from there."""
    ends_SP, loss_S, slope_S = minimise(objective(row, data), starts_SP)
    accuracy_S = accuracy(ends_SP, data)
    without_S = accuracy(minimise(objective(ROWS[0], data), ends_SP)[0], data)
    found = {
        "title": row.title,
        "decay": row.decay,
        "share_by_level": shares(accuracy_S),
        "mean_accuracy": accuracy_S.mean().item(),
        "minima": _distinct(loss_S, accuracy_S),
        "settled": (slope_S < 1e-5).double().mean().item(),
        "then_kd": {"mean_accuracy": without_S.mean().item(), "share_by_level": shares(without_S)},
    }
    return found, ends_SP


def shares(accuracy_S: Tensor) -> dict[str, float]:
    """The fraction of starts at each of `LEVELS`."""
    level_S = (10 * (10 * accuracy_S).round()).clamp(min=LEVELS[0])
    return {str(level): (level_S == level).double().mean().item() for level in LEVELS}


def _distinct(loss_S: Tensor, accuracy_S: Tensor, *, apart: float = 1e-5) -> list[dict[str, float]]:
    """Different ends of descent by loss, lowest first. Ends that differ only in the order of hidden units count once"""
    minima: list[dict[str, float]] = []
    for start in loss_S.argsort().tolist():
        loss = loss_S[start].item()
        if minima and loss - minima[-1]["loss"] < apart:
            minima[-1]["starts"] += 1
        else:
            minima.append({"loss": loss, "accuracy": accuracy_S[start].item(), "starts": 1})
    return minima


def _surfaces(data: Data, ends_SP: Tensor) -> dict[str, Any]:
    """Each loss with the usual weight decay on the plane through three ends of KD: the best and two others."""
    accuracy_S = accuracy(ends_SP, data)
    corners_3P = ends_SP[_three(accuracy_S)]
    origin_P, first_P, second_P = corners_3P[0], *(align(corner, corners_3P[0]) for corner in corners_3P[1:])
    axis = torch.linspace(-_BEYOND, 1 + _BEYOND, _SIDE, dtype=torch.float64)
    uv_S2 = torch.cartesian_prod(axis, axis)
    plane_SP = origin_P + uv_S2 @ torch.stack([first_P - origin_P, second_P - origin_P])
    surfaces: dict[str, Any] = {"u": axis.tolist(), "v": axis.tolist(), "corners": accuracy(corners_3P, data).tolist()}
    for row in ROWS:
        if row.decay == DECAY:
            losses_S = vmap(objective(row, data), chunk_size=CHUNK)(plane_SP)
            surfaces[row.title] = losses_S.view(_SIDE, _SIDE).tolist()
    return surfaces


def _three(accuracy_S: Tensor) -> list[int]:
    """The best start and the most frequent other accuracies; any other starts if there are not three."""
    level_S = (20 * accuracy_S).round()
    best = int(accuracy_S.argmax())
    levels, counts = level_S[level_S != level_S[best]].unique(return_counts=True)
    frequent = levels[counts.argsort(descending=True, stable=True)][:2].tolist()
    chosen = [best, *(int((level_S == level).nonzero()[0, 0]) for level in frequent)]
    return [*chosen, *(i for i in range(len(level_S)) if i not in chosen)][:3]


def align(parameters_P: Tensor, towards_P: Tensor) -> Tensor:
    """The same student with its hidden units ordered and signed to be as close to another student as possible."""
    hidden = (len(parameters_P) - 3) // 6
    best_P = parameters_P
    for order in permutations(range(hidden)):
        for signs in product((1.0, -1.0), repeat=hidden):
            sign_H = parameters_P.new_tensor(signs)
            weight, bias, out, out_bias = parameters_P.split([2 * hidden, hidden, 3 * hidden, 3])
            parts = [
                weight.view(2, hidden)[:, order] * sign_H,
                bias[list(order)] * sign_H,
                out.view(hidden, 3)[list(order)] * sign_H[:, None],
                out_bias,
            ]
            same_P = torch.cat([part.flatten() for part in parts])
            if (same_P - towards_P).norm() < (best_P - towards_P).norm():
                best_P = same_P
    return best_P


def _regions(data: Data) -> dict[str, Any]:
    """Data for the picture: the examples, and the teacher's class on a grid."""
    across = torch.linspace(-1.0, 4.0, 150, dtype=torch.float64)
    up = torch.linspace(-1.0, 2.5, 100, dtype=torch.float64)
    with torch.no_grad():
        classes = data.teacher(torch.cartesian_prod(across, up)).argmax(1).view(150, 100)
    examples = {"x": data.x_N2.tolist(), "class": data.targets_N.tolist()}
    teacher = {"x": across.tolist(), "y": up.tolist(), "class": classes.tolist()}
    return {"examples": examples, "teacher": teacher}


def tables(result: dict[str, Any]) -> list[Table]:
    """How often each loss ends at which accuracy, one table for each student."""
    return [_table(student, result["starts"]) for student in result["students"]]


def _table(student: dict[str, Any], count: int) -> Table:
    table = Table(
        title=f"2-D Gaussians, {student['hidden']} hidden units",
        caption=f"% of {count} starts that end at each accuracy; last: at 100 after KD from there.",
    )
    table.add_column("loss", no_wrap=True)
    for name in (f"≤{LEVELS[0]}", *LEVELS[1:], "mean", "then KD"):
        table.add_column(str(name), justify="right")
    for form in student["forms"]:
        table.add_row(
            form["title"],
            *(f"{100 * share:.0f}" for share in form["share_by_level"].values()),
            f"{100 * form['mean_accuracy']:.1f}",
            f"{100 * form['then_kd']['share_by_level']['100']:.0f}",
        )
    return table
