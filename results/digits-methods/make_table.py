"""Run folders of `disk-kd compare digits-methods/...` to runs.csv and, on standard output, a table.

python results/digits-methods/make_table.py RUNS
"""

import csv
import json
import statistics
import sys
from pathlib import Path

import yaml

OWN = [f"{name}_loss" for name in ["hint", "dkd", "nkd", "dist", "jsd", "scaffold", "distill", "kd", "ce"]]
"""A method's own loss in the log is the first of these that is there."""
CRITICAL = 2.262
"""Of Student's t at 95% and nine degrees of freedom: ten seeds."""


def read(run: Path) -> dict[str, object]:
    """One line of runs.csv. The first epoch is the first one at full weight, where the weight warms up."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train" and line["phase"] == "student"]
    own = next(name for name in OWN if name in lines[0])
    warmup = (yaml.safe_load((run / "config.yaml").read_text()).get("hint") or {}).get("warmup_epochs", 0)
    epochs = [line["epoch"] for line in lines]
    first = statistics.fmean(line[own] for line in lines if line["epoch"] == max(epochs[0], warmup))
    last = statistics.fmean(line[own] for line in lines if line["epoch"] == epochs[-1])
    test = json.loads((run / "summary.json").read_text())["test"]
    found = {"recipe": run.parent.name, "seed": int(run.name.removeprefix("seed")), "own": own}
    return found | {"first": first, "last": last} | {name: test[name] for name in ("top1", "nll", "ece")}


def row(recipe: str, runs: list[dict], baseline: list[dict]) -> str:
    """A row of the table: means over seeds, and the difference to the baseline's same seeds."""
    mean = {name: statistics.fmean(run[name] for run in runs) for name in ("first", "last", "top1")}
    lowered = sum(run["last"] < run["first"] for run in runs)
    cells = [recipe, f"{mean['first']:.3g} → {mean['last']:.3g}", f"{lowered}/{len(runs)}"]
    cells.append(f"{mean['top1']:.2f} ± {statistics.stdev(run['top1'] for run in runs):.2f}")
    differences = [run["top1"] - other["top1"] for run, other in zip(runs, baseline, strict=True)]
    if any(differences):
        mean_difference = statistics.fmean(differences)
        error = statistics.stdev(differences) / len(differences) ** 0.5
        clear = abs(mean_difference) > CRITICAL * error
        verdict = ("beats CE" if mean_difference > 0 else "below CE") if clear else "level with CE"
        cells += [f"{mean_difference:+.2f} ± {error:.2f}", verdict]
    return "| " + " | ".join(cells) + " |"


def main(folder: Path) -> None:
    """Write runs.csv beside this file, print the table."""
    runs = [read(path.parent) for path in sorted(folder.glob("digits-methods/*/seed*/summary.json"))]
    runs.sort(key=lambda run: (run["recipe"], run["seed"]))
    with (Path(__file__).parent / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, runs[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in run.items()} for run in runs)
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        baseline = "token-ce" if "token" in recipe else "ce"
        print(row(recipe, *([run for run in runs if run["recipe"] == name] for name in (recipe, baseline))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
