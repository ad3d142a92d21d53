"""Which split is read for what, and which of two checkpoints leaves the house, by every door."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from disk_kd import measure
from disk_kd.build import load_data
from disk_kd.cli import main
from disk_kd.commands.runs import summary_table
from disk_kd.comparison import Experiment, Plan, Row
from disk_kd.comparison.run import _against_baseline, _row
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.export.card import model_card
from disk_kd.export.student import read_student
from disk_kd.metrics import metrics_of, predict, temperature_scaled_nll
from disk_kd.report.outputs import Outputs
from disk_kd.report.reading import Group, Run
from disk_kd.report.verdict import gap_between, judge, ranked
from disk_kd.trained import normalisation, trained_model

Summary = dict[str, Any]


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A run whose best checkpoint is its first: a good student at a learning rate of 0, which then rises to 10."""
    folder = tmp_path_factory.mktemp("fallen")
    good = ["--data.limit_train=480", "--train.epochs=3", "--train.lr=0.1", f"--output={folder / 'good'}"]
    assert main(["train", *tiny, *good]) == 0
    rising = ["--train.schedule=constant", "--train.warmup_epochs=2", "--train.warmup_lr=0", "--train.lr=10"]
    once = ["--train.epochs=4", "--train.batch_size=120", f"--student.weights={folder / 'good'}"]
    assert main(["train", *tiny, *rising, *once, f"--output={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def summary(fallen: Path) -> Summary:
    found: Summary = json.loads((fallen / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def dataset(fallen: Path) -> Dataset:
    return load_data(RunConfig.read(fallen).data)


def test_the_best_on_validation_is_shipped_and_not_the_last(fallen: Path, summary: Summary) -> None:
    lines = [json.loads(line) for line in (fallen / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if line["kind"] == "validation"]
    assert [line["samples"] for line in validated] == [126] * 4, "the validation split chooses"
    tops = [line["top1"] for line in validated]
    assert tops[0] > 80 > 30 > max(tops[1:])
    assert (summary["selected_epoch"], summary["selection"]["best_top1"]) == (1, tops[0])
    assert (summary["validation"]["top1"], summary["last"]["validation"]["top1"]) == (tops[0], tops[-1])
    assert summary["test"]["top1"] > 80 > 30 > summary["last"]["test"]["top1"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_file_is_what_the_summary_says_of_each_split(
    split: str, fallen: Path, summary: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in (fallen, fallen / "student.safetensors"):
        capsys.readouterr()
        data = [] if weights == fallen else ["--data.name=digits"]
        assert main(["evaluate", str(weights), *data, f"--split={split}", "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured == pytest.approx({name: summary[split][name] for name in measured}, abs=1e-4)


def test_the_exported_file_is_the_chosen_checkpoint(fallen: Path, summary: Summary, tmp_path: Path) -> None:
    exported = tmp_path / "student.safetensors"
    assert main(["export", str(fallen), f"--output={exported}"]) == 0
    found = measure.evaluate_weights(measure.EvaluationConfig(exported, RunConfig.read(fallen).data))
    assert found["top1"] == pytest.approx(summary["test"]["top1"])


def test_what_is_shown_of_a_run_is_of_the_chosen_checkpoint(fallen: Path, summary: Summary, tmp_path: Path) -> None:
    cells = list(zip(*(column.cells for column in summary_table(summary).columns), strict=True))
    assert [(row[0], row[1], row[2]) for row in cells] == [
        (split, which, f"{of[split]['top1']:.2f}")
        for split in ("validation", "test")
        for which, of in (("chosen", summary), ("last", summary["last"]))
    ]
    cell = Plan(tmp_path, {}).cell("digits/ce", 0)
    row = _row(Row("ce", "digits/ce"), [cell], {cell: summary})
    assert (row["split"], row["top1"], row["top1_validation"], row["top1_last"]) == (
        "test", summary["test"]["top1"], summary["validation"]["top1"], summary["last"]["test"]["top1"]
    )  # fmt: skip
    card = model_card(read_student(fallen))
    for split, samples in (("validation", "126"), ("test", "539")):
        assert f"| {split} | {samples} | {summary[split]['top1']:.2f} |" in card


def test_a_report_measures_the_shipped_file_on_test(fallen: Path, summary: Summary) -> None:
    logits_NC, targets_N = Outputs("cpu").student_logits(Run.read(fallen))
    found = metrics_of(logits_NC, targets_N).as_dict()
    assert found == pytest.approx({name: summary["test"][name] for name in found}, abs=1e-4)


def test_the_temperature_is_fitted_on_validation_and_told_for_each_split(
    fallen: Path, summary: Summary, dataset: Dataset
) -> None:
    weights = fallen / "student.safetensors"
    student = trained_model("cifar_resnet10_xxxs", {}, weights, 10, 1, {}, dataset.normalisation)
    logits = {}
    for name in ("validation", "test"):
        batches = measure._all_of(getattr(dataset, name), normalisation(student), torch.device("cpu"), False)
        logits[name] = predict(student, batches, device="cpu")
    fitted, nll, ece = temperature_scaled_nll(*logits["validation"])
    assert temperature_scaled_nll(*logits["test"])[0] != pytest.approx(fitted, rel=0.01), "a swap would show"
    assert [summary[name]["temperature"] for name in logits] == pytest.approx([fitted] * 2, rel=1e-4)
    assert (summary["validation"]["nll_scaled"], summary["validation"]["ece_scaled"]) == pytest.approx((nll, ece), 1e-4)
    logits_NC, targets_N = logits["test"]
    expected = float(cross_entropy(logits_NC / fitted, targets_N))
    assert summary["test"]["nll_scaled"] == pytest.approx(expected, rel=1e-4)


def with_tops(run: Run, seed: int, validation: float, test: float) -> Run:
    """The run of another seed, with these accuracies."""
    found = json.loads(json.dumps(run.summary))
    found["validation"]["top1"], found["test"]["top1"] = validation, test
    return Run(run.folder, run.text.replace("seed: 0", f"seed: {seed}"), found, run.lines)


def test_a_report_ships_the_best_seed_and_group_on_validation_and_tells_test(fallen: Path, tmp_path: Path) -> None:
    """On test each would be the other."""
    run = Run.read(fallen)
    good = Group("good", (with_tops(run, 0, 80.0, 77.0), with_tops(run, 1, 90.0, 71.0)))
    lucky = Group("lucky", (with_tops(run, 0, 60.0, 88.0), with_tops(run, 1, 61.0, 89.0)))
    assert good.chosen.seed == 1
    first, second = ranked([lucky, good])
    assert (first.name, second.name) == ("good", "lucky")
    outputs = Outputs("cpu")
    verdict = judge([first, second], [], outputs)
    assert verdict.chosen is good
    assert "Ship good: 74.00 ± 4.24% top-1 on test over 2 seeds, 71.00% for the shipped file," in verdict.sentence
    gap = gap_between(good, lucky, outputs)
    # Of -11 and -18; 12.706 is Student's t of one degree of freedom.
    assert (gap.points, gap.half) == pytest.approx((-14.5, 12.7062 * 3.5), rel=1e-4)

    rows = [Row("good", "digits/kd"), Row("lucky", "digits/ce")]
    cells = {row: [Plan(tmp_path, {}).cell(row.recipe, seed) for seed in (0, 1)] for row in rows}
    outcomes = {
        cell: found.summary or {}
        for row, group in zip(rows, (good, lucky), strict=True)
        for cell, found in zip(cells[row], group.runs, strict=True)
    }
    table: list[dict[str, Any]] = [{"recipe": row.group, "chosen": True, "n": 2, "split": "test"} for row in rows]
    _against_baseline(Experiment(tuple(rows), seeds=2, baseline="lucky"), table, cells, outcomes)
    assert (table[0]["top1_gain"], table[0]["top1_gain_95"]) == pytest.approx((gap.points, gap.half)), "as in the table"
