"""What a search says at its end: the gain of distillation and its cost, tables, and a recipe."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from disk_kd.comparison.gain import differences, interval
from disk_kd.config import RunConfig
from disk_kd.files import write_text
from disk_kd.options import plain
from disk_kd.tables import as_markdown, csv_lines, markdown_table
from disk_kd.tuning.importance import Importances
from disk_kd.tuning.search import Search
from disk_kd.tuning.space import Setting, setting_text


@dataclass(frozen=True)
class Confirmed:
    """The full runs of a method's best setting, with seeds that the search did not use.

    Attributes:
        name: of the method.
        setting: values by dotted option.
        summaries: of the runs, by seed.
        folder: of the run directories.
    """

    name: str
    setting: Setting
    summaries: Mapping[int, Mapping[str, Any]]
    folder: Path

    @property
    def split(self) -> str:
        """The split that the gain is measured on: test, or validation where there is no test split."""
        return "test" if all("test" in one for one in self.summaries.values()) else "validation"

    def top1(self, split: str) -> dict[int, float]:
        """Accuracy by seed, in percent."""
        return {seed: one[split]["top1"] for seed, one in self.summaries.items()}

    @property
    def train_s(self) -> float:
        """Mean seconds of training."""
        return statistics.fmean(one["train_s"] for one in self.summaries.values())

    def mean(self, split: str) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.top1(split).values())


@dataclass(frozen=True)
class Gain:
    """What distillation gains over the labels alone, in points of top-1, paired by seed.

    Attributes:
        method: the best method with a teacher.
        baseline: the labels alone.
        points: mean difference.
        half_width: half the width of its 95 % confidence interval by Student's t; None of a single seed.
        cost: seconds of training over those of the baseline.
        seeds: number of seeds that both have.
        split: where it is measured.
        setting: of the method, in one line.
    """

    method: str
    baseline: str
    points: float
    half_width: float | None
    cost: float
    seeds: int
    split: str
    setting: str

    @property
    def gains(self) -> bool:
        """Whether the interval lies above zero. A single seed shows nothing."""
        return self.half_width is not None and self.points > self.half_width

    def as_dict(self) -> dict[str, Any]:
        """The fields and the sentence."""
        return {**vars(self), "gains": self.gains, "sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """The answer in one or two sentences."""
        measured = f"{self.points:+.2f}" + ("" if self.half_width is None else f" ± {self.half_width:.2f}")
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        how = f"({seeds}, {self.split} split{', 95 % interval' if self.half_width is not None else ''})"
        cost = f"at {self.cost:.2f} times the training time"
        what = f"{self.method} ({self.setting})"
        over = f"over labels alone {how} {cost}"
        if self.half_width is None:
            return f"Distilling with {what} changes top-1 by {measured} points {over}; a single seed shows no more."
        if self.gains:
            return f"Distilling with {what} gains {measured} points {over}."
        return f"Distilling does not gain: {what} has {measured} points {over}; the interval is not above zero."


def gain_of(baseline: Confirmed, best: Confirmed) -> Gain:
    """The gain of a method over the baseline."""
    split = "test" if baseline.split == best.split == "test" else "validation"
    paired = differences(best.top1(split), baseline.top1(split))
    points, half = interval(paired or [best.mean(split) - baseline.mean(split)])
    cost = best.train_s / max(baseline.train_s, 1e-9)
    return Gain(best.name, baseline.name, points, half, cost, max(1, len(paired)), split, setting_text(best.setting))


def write_outcome(
    folder: Path,
    searches: Sequence[Search],
    confirmed: Sequence[Confirmed],
    gain: Gain,
    found: Importances,
    used_s: float,
) -> tuple[Path, ...]:
    """Write the recipe of the best setting, the table as Markdown and CSV, and all numbers as JSON.

    The recipe is that of the finalist with the higher validation accuracy. The test split chooses nothing.
    """
    best = max(confirmed, key=lambda one: one.mean("validation"))
    write_text(folder / "best.yaml", _recipe(best, gain))
    write_text(folder / "table.md", _markdown(searches, confirmed, gain, found, used_s))
    rows = [row for search in searches for row in _rows(search)]
    write_text(folder / "table.csv", csv_lines(rows, list(dict.fromkeys(name for row in rows for name in row))))
    about = {"gain": gain.as_dict(), "importance": found, "used_s": round(used_s, 1)}
    write_text(folder / "result.json", json.dumps(plain(about), indent=2) + "\n")
    return tuple(folder / name for name in ("best.yaml", "table.md", "table.csv", "result.json"))


def _recipe(best: Confirmed, gain: Gain) -> str:
    """The full run of a setting as a recipe."""
    tree = RunConfig.read(best.folder / f"seed{min(best.summaries)}").to_tree()
    for name in ("output", "published"):
        tree.pop(name)
    tree["train"].pop("seed")
    tree["description"] = f"{best.name}, the best setting of disk-kd tune"
    return f"# {gain.sentence}\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}"


def _rows(search: Search) -> list[dict[str, Any]]:
    """A line for each setting of a method."""
    return [
        {
            "method": search.candidate.name,
            "number": one.job.number,
            "setting": setting_text(one.job.setting),
            **{f"validation_top1_{epochs}_epochs": one.top1(epochs) for epochs in search.lengths},
            "seconds": round(sum(result.seconds for result in one.results.values()), 1),
            "failed": "; ".join(result.failed for result in one.results.values() if result.failed),
            **one.job.setting,
        }
        for one in search.tried
    ]


def _markdown(
    searches: Sequence[Search], confirmed: Sequence[Confirmed], gain: Gain, found: Importances, used_s: float
) -> str:
    titles = ["method", "best setting", "settings", "full runs", "epochs", "validation top-1 %", "test top-1 %, seeds"]
    seeds = {one.name: one for one in confirmed}
    body = [[as_markdown(cell) for cell in _summary(search, seeds.get(search.candidate.name))] for search in searches]
    lines = [gain.sentence, "", *markdown_table(titles, body), "", _LEGEND.format(minutes=used_s / 60)]
    for name, shares in found.items():
        each = ", ".join(f"{option} {share:.0%}" for option, share in shares.items())
        lines.append(f"- What mattered, {name}: {each}")
    return "\n".join(lines) + "\n"


def _summary(search: Search, confirmed: Confirmed | None) -> list[str]:
    """The cells of a method's row."""
    full, best = search.lengths[-1], search.best
    return [
        search.candidate.name,
        "none" if best is None else setting_text(best.job.setting),
        str(len(search.tried)),
        str(sum(full in one.results for one in search.tried)),
        str(search.spent),
        "" if best is None else f"{best.top1(full):.2f}",
        "" if confirmed is None else _measured(list(confirmed.top1(confirmed.split).values())),
    ]


def _measured(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


_LEGEND = """Validation chose the settings: one run each, seed 0. The search measures no run on the test split.
The best setting of the labels alone and that of the best other method then ran with seeds that the search did not use.
epochs: student epochs of all runs of a method. Test top-1 is mean ± sample standard deviation over the seeds in
brackets. The importance of an option is its share in the variance of the validation accuracy of the shortest runs.
{minutes:.1f} minutes in all.
"""
