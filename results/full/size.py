"""How long the experiments of this folder take on one GPU: worked out, not measured.

python results/full/size.py

A student's epoch costs three forward passes an image. A teacher's forward pass is made once for each view: in each
epoch, or less often where data.views says so; that runs share what is stored is not taken into account. The helper
network's epochs cost the student's forward pass and three of the helper's. A step takes the longer of two times: its
multiply-adds at REACHED of PEAK, and STEP_S, in which the host starts its kernels. Both are assumptions.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from disk_kd.comparison import Cell, plan_waves, read_experiment
from disk_kd.comparison.plan import cell_config
from disk_kd.config import RunConfig
from disk_kd.helpers import HELPERS
from disk_kd.models import create_model, multiply_adds

PEAK = 67e12  # FLOP/s in float32 by the data sheet of an H100 SXM; TF32, which torch leaves off for matmuls, has more
REACHED = 0.2
STEP_S = 4e-3
IMAGES = 50_000
MAP_SIDE, HELPER_WIDTH = 8, 256


@cache
def forward(model: str) -> int:
    """FLOP of a forward pass of a 32x32 image."""
    return 2 * multiply_adds(create_model(model, num_classes=100), (3, 32, 32))


def hours(config: RunConfig) -> float:
    """Of a run."""
    train, images = config.train, IMAGES * (1 - config.data.validation)
    steps = train.epochs * images / train.batch_size
    student, teacher = forward(config.student.name), forward(config.teacher.name) if config.teacher else 0
    views = min(config.data.views or train.epochs, train.epochs)
    seconds = steps * max(3 * student * train.batch_size / (REACHED * PEAK), STEP_S)
    seconds += views * images * teacher / (REACHED * PEAK)
    if config.method == "disk" and str(config.method_options["helper"]) in HELPERS:
        helper = 2 * HELPER_WIDTH * HELPER_WIDTH * (9 + 2) * MAP_SIDE**2
        seconds += steps * max((student + 3 * helper) * train.batch_size / (REACHED * PEAK), STEP_S)
    return seconds / 3600


def main() -> None:
    """Print a row for each experiment; what earlier rows trained, such as teachers, is not counted again."""
    done: set[Path] = set()
    total = 0.0
    print("| experiment | runs | hours |\n|---|---|---|")
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        experiment, runs, spent = read_experiment(path), 0, 0.0
        cells = []
        for group in experiment.groups.values():
            seeds = experiment.seeds if len(group) == 1 else experiment.tuning_seeds
            cells += [Cell(row.recipe, seed, (), row.options, row.folder) for row in group for seed in range(seeds)]
            row = group[0]
            cells += [Cell(row.recipe, seed, (), row.options, row.folder) for seed in range(seeds, experiment.seeds)]
        for config in (cell_config(cell, Path("runs")) for wave in plan_waves(cells, Path("runs")) for cell in wave):
            if config.output not in done:
                done.add(config.output)
                runs, spent = runs + 1, spent + hours(config)
        total += spent
        print(f"| `{path.name}` | {runs} | {spent:,.1f} |")
    print(f"| all | {len(done)} | {total:,.0f} |")


if __name__ == "__main__":
    sys.exit(main())
