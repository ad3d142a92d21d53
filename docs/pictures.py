"""Draw the pictures of the pages anew: `python docs/pictures.py`.

`help.svg` is computed by the package's own loss and helper, for one image of made-up logits. `price.svg` shows the
two DiSK runs of `results/methods-16px/cells.tar.xz`. `gain.svg` shows the runs of `results/tuned-kd/cells.csv`.
"""

from __future__ import annotations

import csv
import json
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disk_kd.comparison.gain import interval
from disk_kd.files import write_text
from disk_kd.helpers import exact_helper
from disk_kd.losses import scaffolded_kl
from disk_kd.svg import figure_svg

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results/methods-16px/cells.tar.xz"
CELLS = ROOT / "results/tuned-kd/cells.csv"
COLOURS = {"teacher": "#8a8a8a", "student": "#d98a29", "helped": "#2f74ad"}

CLASSES = ("cat", "fox", "dog", "ship", "car", "plane")
TEACHER = torch.tensor([[3.2, 2.1, 1.2, -1.0, -1.5, -2.0]])
STUDENT = torch.tensor([[-0.5, 1.8, 2.9, 0.2, -0.8, -1.5]])
LABEL = torch.tensor([0])
SETTINGS: dict[str, Any] = {"top_k": 3, "student_temperature": 1.0, "teacher_temperature": 1.0}
PRICES = (0.0, 0.25, 1.0)


def main(folder: Path) -> None:
    """Write the pictures into `folder`."""
    pictures = {"help.svg": help_picture(), "price.svg": price_picture(), "gain.svg": gain_picture()}
    for name, picture in pictures.items():  # letters as outlines, so that no font is needed
        write_text(folder / name, figure_svg(picture, fonttype="path"))


def help_picture() -> Figure:
    """One image: what help does to the student's probabilities, and which help is best at which price."""
    picture = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    probabilities(left)
    objective(right)
    return picture


def probabilities(axes: Axes) -> None:
    """Teacher, student, and the student with the help that is best at the second price."""
    student, best = STUDENT.softmax(1)[0], best_help(PRICES[1])
    support = torch.zeros(len(CLASSES))
    support[: SETTINGS["top_k"]] = 1
    helped = (student + best * support) / (1 + support.sum() * best)
    bars = {"teacher": TEACHER.softmax(1)[0], "student": student, "helped": helped}
    for number, (name, values) in enumerate(bars.items()):
        label = f"student with g = {best:.2f}" if name == "helped" else name
        places = [place + 0.27 * (number - 1) for place in range(len(CLASSES))]
        axes.bar(places, values.tolist(), width=0.25, color=COLOURS[name], label=label)
    axes.axvspan(-0.5, SETTINGS["top_k"] - 0.5, color="#2f74ad", alpha=0.08, zorder=0)
    axes.text(1, 0.75, "support M", ha="center", fontsize=9)
    axes.set(
        xticks=range(len(CLASSES)),
        xticklabels=CLASSES,
        ylabel="probability",
        xlim=(-0.5, len(CLASSES) - 0.5),
        ylim=(0, 0.8),
    )
    axes.set_title("An image the student cannot follow", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def objective(axes: Axes) -> None:
    """KL(t || q(g)) + price g CE over g, and its minimum by the exact helper."""
    grid = torch.linspace(0, 1, 201)
    for price, colour in zip(PRICES, ("#2f74ad", "#4d9a6a", "#a23b52"), strict=True):
        axes.plot(grid, [value(g, price) for g in grid], color=colour, label=f"price {price:g}")
        best = best_help(price)
        axes.plot(best, value(torch.tensor(best), price), "o", color=colour, clip_on=False)
        at = (best, value(torch.tensor(best), price))
        axes.annotate(f"g = {best:.2f}", at, (0, -14), textcoords="offset points", ha="right" if best == 1 else "left")
    axes.set(xlabel="g, the help", ylabel="KL(t || q) + price g CE, nats", xlim=(0, 1), ylim=(0, None))
    axes.set_title("What the exact helper minimises", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def value(g: torch.Tensor, price: float) -> float:
    """The helper's objective."""
    cost = torch.nn.functional.cross_entropy(STUDENT, LABEL)
    return float(scaffolded_kl(STUDENT, TEACHER, LABEL, g[None], **SETTINGS) + price * g * cost)


def best_help(price: float) -> float:
    """The g that minimises it."""
    return float(exact_helper(STUDENT, TEACHER, LABEL, **SETTINGS, price=price, max_ce=5.0))


def price_picture() -> Figure:
    """Budget asked and used, and the price, over two runs."""
    picture = Figure(figsize=(9, 3), layout="constrained")
    left, right = picture.subplots(1, 2)
    for seed, shade in ((0, 1.0), (1, 0.5)):
        lines = [line for line in metrics(f"cells/disk/seed{seed}") if line["kind"] == "train"]
        steps = [line["step"] for line in lines]
        used, price = ([line[name] for line in lines] for name in ("budget_used", "price"))
        left.plot(steps, used, color="#2f74ad", alpha=shade, label=f"used, seed {seed}")
        right.plot(steps, price, color="#a23b52", alpha=shade, label=f"seed {seed}")
    left.axhline(lines[-1]["budget"], color="black", linestyle="--", linewidth=1, label="asked")
    left.set(xlabel="step", ylabel="mean g CE, nats", yscale="log", title="Budget")
    right.set(xlabel="step", ylabel="nats per unit of help", ylim=(0, None), title="Price")
    for axes in (left, right):
        axes.title.set_fontsize(11)
        axes.legend(frameon=False, fontsize=9)
    return picture


def metrics(run: str) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, read from the archive of runs."""
    with tarfile.open(RUNS) as archive:
        file = archive.extractfile(f"{run}/metrics.jsonl")
        assert file is not None
        return [json.loads(line) for line in file]


SIZES = {"tuned-xxs": 13_020, "capacity-xs": 27_884, "tuned-s": 83_852, "capacity-m": 320_436}
EPOCHS = {"tuned-xxs": 20, "epochs60-xxs": 60, "epochs200-xxs": 200}
ELSEWHERE = {
    ("tuned-xxs", "disk"): ("budget", "disk-xxs"),
    ("capacity-xs", "disk"): ("budget", "disk-xs"),
    ("tuned-xxs", "disk-less"): ("less-help", "disk-xxs"),
    ("tuned-s", "disk-less"): ("less-help-s", "disk"),
    ("capacity-m", "disk-less"): ("less-help", "disk-m"),
}
"""Cells that ran again with the budget met, and those of a smaller one."""
METHODS = {
    "dist": ("DIST", "#4d9a6a"),
    "disk-less": ("DiSK, budget 0.003", "#86b6dc"),
    "disk": ("DiSK, budget 0.01", "#2f74ad"),
    "ce": ("CE", "#8a8a8a"),
}


def gain_picture() -> Figure:
    """Gain over KD of the chosen settings against the student's size and against the epochs."""
    picture = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    gains_over(left, SIZES, "parameters of the student, 20 epochs")
    gains_over(right, EPOCHS, "epochs, the smallest student")
    left.set_ylabel("top-1 gain over KD, points")
    right.legend(frameon=False, fontsize=9, loc="lower center")
    return picture


def gains_over(axes: Axes, experiments: dict[str, int], label: str) -> None:
    """Gains over KD paired by seed, with 95% intervals where there are three seeds."""
    for number, (method, (name, colour)) in enumerate(METHODS.items()):
        places, means, halves = [], [], []
        for experiment, place in experiments.items():
            where = ELSEWHERE.get((experiment, method), (experiment, method))
            kd, own = chosen_top1(experiment, "kd"), chosen_top1(*where)
            if gains := [own[seed] - kd[seed] for seed in kd.keys() & own.keys()]:
                mean, half = interval(gains)
                places.append(place * 1.03 ** (number - 1))
                means.append(mean)
                halves.append(half if len(gains) > 2 else float("nan"))
        axes.errorbar(places, means, halves, fmt="o-", color=colour, capsize=4, label=name)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xscale="log", xlabel=label)
    axes.set_xticks(list(experiments.values()), [f"{number:,}" for number in experiments.values()])
    axes.minorticks_off()


def chosen_top1(experiment: str, method: str) -> dict[str, float]:
    """Top-1 on test of a method's chosen setting, which is the one that ran with three seeds."""
    settings: dict[str, dict[str, float]] = defaultdict(dict)
    with CELLS.open() as file:
        for cell in csv.DictReader(file):
            if cell["experiment"] == experiment and cell["setting"].partition("/")[0] == method:
                settings[cell["setting"]][cell["seed"]] = float(cell["top1"])
    return max(settings.values(), key=len, default={})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/pictures")
