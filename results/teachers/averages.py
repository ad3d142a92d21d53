"""Average teachers by probabilities and by logits: accuracy of the ensemble, and of students that learn from it.

    python results/teachers/averages.py

Five teachers of different widths and seeds learn 200 labelled digits. For each average, students of five seeds learn
from them. The script prints one row for each average. It takes about a minute on one idle core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import disk_kd

TEACHERS = ("cifar_resnet10_xxs", "cifar_resnet10_xxs", "cifar_resnet10_xs", "cifar_resnet10_xs", "cifar_resnet10_s")
DATA: dict[str, Any] = {"limit_train": 200, "augment": {"crop_padding": 1}}
TRAIN: dict[str, Any] = {"batch_size": 32, "epochs": 12, "compile": False, "lr": 0.05}
SEEDS = range(5)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        members = []
        for number, name in enumerate(TEACHERS):
            output = runs / f"teacher{number}"
            train = {**TRAIN, "seed": number}
            disk_kd.train(runs=runs, data=DATA, student={"name": name}, train=train, output=str(output))
            members.append({"name": name, "weights": str(output)})
        alone = disk_kd.evaluate(teacher=members, data=DATA)
        print(
            "teachers alone, test top-1:", [f"{one['top1']:.2f}" for name, one in alone.items() if name != "ensemble"]
        )
        for combine in ("probabilities", "logits"):
            teacher = {"members": members, "combine": combine}
            ensemble = disk_kd.evaluate(teacher=teacher, data=DATA)["ensemble"]
            students = [student(runs, teacher, combine, seed) for seed in SEEDS]
            shown = [f"{fmean(each):.4f} +- {stdev(each):.4f}" for each in zip(*students, strict=True)]
            print(f"{combine}: ensemble top-1 {ensemble['top1']:.2f} %, NLL {ensemble['nll']:.4f}, ECE", end=" ")
            print(f"{ensemble['ece']:.4f}; student top-1 {shown[0]} %, NLL {shown[1]}")


def student(runs: Path, teacher: dict[str, Any], combine: str, seed: int) -> tuple[float, float]:
    """Test top-1 in percent and NLL of a student."""
    run = disk_kd.distill(
        runs=runs,
        data=DATA,
        student={"name": "cifar_resnet10_xxs"},
        teacher=teacher,
        method="kd",
        train={**TRAIN, "seed": seed},
        output=str(runs / combine / f"seed{seed}"),
    )
    return run.summary["test"]["top1"], run.summary["test"]["nll"]


if __name__ == "__main__":
    main()
