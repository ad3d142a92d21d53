"""Run folders of experiments to one table, on standard output as CSV: what each setting gave, seed by seed.

python results/collect.py RUNS EXPERIMENT... > explore.csv
"""

import csv
import json
import sys
from pathlib import Path


def main(runs: Path, experiments: list[str]) -> None:
    """Write a line for each finished run."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    scores = ("top1", "nll", "ece", "nll_scaled", "ece_scaled")
    writer.writerow(["experiment", "setting", "seed", "validation_top1", *scores, "helper_mean", "budget_used"])
    for experiment in experiments:
        for path in sorted((runs / experiment).rglob("summary.json")):
            summary = json.loads(path.read_text())
            setting = path.parent.parent.relative_to(runs / experiment)
            numbers = [summary.get("validation", {}).get("top1"), *(summary["test"].get(score) for score in scores)]
            numbers += [summary["end"].get(name) for name in ("helper_mean", "budget_used")]
            shown = ("" if number is None else round(number, 4) for number in numbers)
            writer.writerow([experiment, setting, path.parent.name.removeprefix("seed"), *shown])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
