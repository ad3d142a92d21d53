"""Comparisons: what runs first, what is reused, and what a table says."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from disk_kd.arguments import read_arguments
from disk_kd.cli import main
from disk_kd.comparison import (
    Comparison,
    Experiment,
    Plan,
    Row,
    compare,
    of_recipes,
    read_experiment,
    waves,
    with_control,
    worker,
)
from disk_kd.comparison import run as compare_run
from disk_kd.comparison.conditions import conditions, conditions_text
from disk_kd.comparison.gain import interval
from disk_kd.comparison.placement import gpu_of, placed
from disk_kd.comparison.run import _against_baseline, _best, _Pool
from disk_kd.comparison.table import csv_text, latex, markdown, table
from disk_kd.errors import ConfigError, RunError
from disk_kd.recipe import find_recipe, load_recipe
from disk_kd.tasks import DiSKTask
from processes import Command


def test_weights_are_made_before_they_are_used(tmp_path: Path) -> None:
    plan = Plan(tmp_path, {})
    cells = [plan.cell("cifar100/resnet10_s/resnet10_l-kd", seed) for seed in (0, 1)]
    start = [plan.cell("cifar100/start-resnet10_s", seed) for seed in (0, 1)]
    assert [set(wave) for wave in waves(cells)] == [{plan.cell("cifar100/teacher-resnet10_l", 0), *start}, set(cells)]


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [(5, 2, [0, 1, 0, 1, 0]), (2, 4, [0, 1]), (3, 1, [0, 0, 0]), (2, 0, [None, None])],
)
def test_workers_take_the_gpus_in_turn(jobs: int, gpus: int, expected: list[int | None]) -> None:
    assert [gpu_of(worker, gpus) for worker in range(jobs)] == expected


@pytest.mark.parametrize(
    ("asked", "gpu", "device"),
    [("auto", 1, "cuda:1"), ("cuda", 0, "cuda:0"), ("cuda:2", 1, "cuda:2"), ("cpu", 1, "cpu"), ("auto", None, "auto")],
)
def test_a_run_trains_on_its_workers_gpu_unless_it_names_a_device(
    asked: str, gpu: int | None, device: str, tmp_path: Path
) -> None:
    config = Plan(tmp_path, {"train": {"device": asked}}).cell("digits/ce", 0).config
    run = placed(config, gpu)
    assert run.train.device == device
    assert replace(run, train=config.train) == config


def test_each_worker_has_a_number_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(worker, "_gpu", None)
    begun, gpus = get_context("spawn").Value("i", 0), list[int | None]()
    for _ in range(3):
        worker._begin(3, begun)
        gpus.append(worker._gpu)
    assert gpus == [0, 1, 0]


DEADLY = """
import os
from disk_kd.tasks import CETask

class Deadly(CETask):
    def forward(self, *batch):
        os._exit(9)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> tuple[Path, list[str]]:
    """Two recipes on two seeds, the second of which diverges."""
    root = tmp_path_factory.mktemp("compare")
    (root / "wild.yaml").write_text("description: too high\nmethod: {name: ce}\ntrain: {lr: 1.0e12}\n")
    recipes = ["digits/kd", str(root / "wild.yaml")]
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    assert main(["compare", *recipes, "--seeds=2", f"--runs={root / 'runs'}", *options]) == 0
    return root / "runs", recipes


def test_table_has_means_failures_and_conditions(finished: tuple[Path, list[str]]) -> None:
    runs, recipes = finished
    with (runs / "compare.csv").open() as file:
        rows = {row["recipe"]: row for row in csv.DictReader(file)}
    summaries = [json.loads((runs / f"digits/kd/seed{seed}/summary.json").read_text()) for seed in (0, 1)]
    top1 = [summary["test"]["top1"] for summary in summaries]
    kd = rows["digits/kd"]
    assert float(kd["top1"]) == pytest.approx(sum(top1) / 2)
    assert float(kd["top1_std"]) == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    assert (kd["n"], kd["student_epochs"], kd["start_epochs"]) == ("2", "2", "0")
    assert rows[recipes[1]]["n"] == "0"
    assert "the loss is no longer finite" in rows[recipes[1]]["failed"]
    text = (runs / "compare.md").read_text()
    assert "| digits/kd | KD" in text
    assert "failed: the loss is no longer finite" in text


def test_finished_runs_are_not_run_again(finished: tuple[Path, list[str]], tiny: Sequence[str]) -> None:
    runs, _ = finished
    summary = runs / "digits/kd/seed0/summary.json"
    before = os.stat(summary).st_mtime_ns
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    tree = read_arguments(options).tree
    done = compare(of_recipes(["digits/kd"], 1), runs=runs, options=tree, console=Console(quiet=True))
    assert os.stat(summary).st_mtime_ns == before
    assert done.rows[0]["n"] == 1


def test_the_processes_of_a_killed_comparison_end(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "disk_kd",
        "compare",
        "digits/teacher",
        f"--runs={tmp_path}",
        "--train.epochs=100000",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as comparison:
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert comparison.poll() is None
            time.sleep(0.1)
        processes = psutil.Process(comparison.pid).children(recursive=True)
        comparison.kill()
    assert processes
    assert not psutil.wait_procs(processes, timeout=30)[1]


def test_a_run_whose_process_dies_costs_no_other(
    tmp_path: Path, tiny: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "deadly.yaml").write_text("description: deadly\nmethod: {name: 'deadly:Deadly'}\n")
    monkeypatch.chdir(tmp_path)
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    assert main(["compare", "deadly.yaml", "digits/ce", "--seeds=2", "--jobs=2", "--runs=runs", *options]) == 0
    deadly, ce = rows_of(tmp_path / "runs/compare.csv")
    assert (deadly["n"], ce["n"]) == ("0", "2")
    assert deadly["failed"] == "its process ended abruptly; out of memory? lower --jobs or train.batch_size"


def test_an_error_ends_no_process_of_the_callers(tmp_path: Path) -> None:
    own = get_context("spawn").Process(target=time.sleep, args=(60,))
    own.start()
    pool = _Pool(1, Console(quiet=True))
    pool._pool.submit(time.sleep, 60)
    workers = [worker for worker in active_children() if worker.pid != own.pid]
    pool.__exit__(KeyError)
    assert workers
    assert not any(worker.is_alive() for worker in workers)
    assert own.is_alive()
    own.kill()


def test_the_same_comparison_twice_at_once_shares_its_runs(tmp_path: Path, tiny: Sequence[str]) -> None:
    """Neither counts the other's run as failed."""
    options = [option for option in tiny if option.startswith(("--data", "--train")) and "epochs" not in option]
    command = ["compare", "digits/ce", "--seeds=1", "--report=false", *options]
    command += [f"--runs={tmp_path}", "--train.epochs=40", "--student.name=cifar_resnet10_xxxs"]
    both = [Command(command, workers="fork") for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    (row,) = rows_of(tmp_path / "compare.csv")
    assert (row["n"], row["failed"]) == ("1", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.device=tpu9"], "no device 'tpu9' here"),
        (["--data.name=cifar99"], "data.name 'cifar99' is not a dataset; nearest: cifar"),
        (["--data.name=cifar100"], "cifar100 needs data.root"),
        (["--data.name=folder", "--data.root=gone"], "folder: there is no folder data.root .*gone"),
        (["--student.name=resnet5O"], "no model is named 'resnet5O'; nearest: resnet50"),
        (["--student.weights=gone.safetensors"], "no student weights at .*gone.safetensors; give --student.weights"),
    ],
)
def test_a_wrong_device_model_or_dataset_stops_before_anything_runs(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "digits/ce", "--seeds=1", f"--runs={tmp_path / 'runs'}", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_recipes_that_are_each_others_teacher_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, other in (("one", "other"), ("other", "one")):
        text = f"method: {{name: kd}}\nteacher: {{name: cifar_resnet10_xxs, weights: 'recipe:{other}.yaml'}}\n"
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"each other: one.yaml from other.yaml from one.yaml; name other weights"):
        Plan(tmp_path, {}).cell("one.yaml", 0)


def test_a_setting_is_chosen_on_validation_and_not_on_test(tmp_path: Path) -> None:
    rows = [Row("kd", "digits/kd", folder=name) for name in ("a", "b")]
    cells = {row: [Plan(tmp_path, {}).cell(row.recipe, 0, folder=row.folder)] for row in rows}
    tops = {"a": (80.0, 95.0), "b": (90.0, 60.0)}
    outcomes = {
        cells[row][0]: {
            split: {"top1": top1} for split, top1 in zip(("validation", "test"), tops[row.name], strict=True)
        }
        for row in rows
    }
    assert _best(rows, cells, outcomes).name == "b"


def test_rows_measured_on_other_images_have_no_gain(tmp_path: Path) -> None:
    rows = [Row("kd", "digits/kd"), Row("ce", "digits/ce")]
    cells = {row: [Plan(tmp_path, {}).cell(row.recipe, seed) for seed in (0, 1)] for row in rows}
    about = [{"recipe": row.group, "chosen": True, "n": 2, "split": "test"} for row in rows]
    for samples, gains in (((50, 50), True), ((50, 60), False)):
        outcomes = {
            cell: {"data": "digits", "test": {"top1": 90.0 + cell.seed, "nll": 0.1, "samples": count}}
            for row, count in zip(rows, samples, strict=True)
            for cell in cells[row]
        }
        told = [dict(row) for row in about]
        _against_baseline(Experiment(tuple(rows), baseline="ce"), told, cells, outcomes)
        assert ("top1_gain" in told[0]) == gains


def test_the_control_of_a_recipe_is_the_same_without_its_method(tmp_path: Path, tiny: Sequence[str]) -> None:
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    command = ["compare", "digits/kd", "--against=ce", "--seeds=1", "--report=false", f"--runs={tmp_path}", *options]
    assert main(command) == 0
    control, kd = rows_of(tmp_path / "compare.csv")
    assert (control["recipe"], control["method"], kd["method"]) == ("digits/kd-against-ce", "ce", "kd")
    assert float(kd["top1_gain"]) == pytest.approx(float(kd["top1"]) - float(control["top1"]))
    folders = [tmp_path / "digits" / name / "seed0" for name in ("kd-against-ce", "kd")]
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
    assert all(configs[0][part] == configs[1][part] for part in ("data", "student", "train"))


@pytest.mark.parametrize("part", ["method", "hint"])
def test_a_control_keeps_its_method(part: str) -> None:
    with pytest.raises(ConfigError, match=f"--{part} would also change the control"):
        with_control(["digits/kd"], 1, "ce", {part: "at"})


def test_names_and_texts_are_no_markup_and_no_formulas() -> None:
    measured = {f"{name}{end}": 1.0 for name in ("top1", "nll", "ece") for end in ("", "_std")}
    row = {
        "recipe": "a_b & 50%",
        "setting": "s",
        "n": 2,
        "failed": "",
        "start_epochs": 0,
        "student_epochs": 1,
        **measured,
    }
    row |= {"weight_decay": 0.0, "parameters": 1, "published": None, "description": "=1+1 | [x](y) <b>\n# head"}
    text = markdown([row], "- data.root: [a|b]")
    assert r"| =1+1 \| \[x\](y) \<b\> # head |" in text
    assert r"- data.root: \[a\|b\]" in text
    assert next(csv.DictReader(csv_text([row]).splitlines(keepends=True)))["description"].startswith("'=1+1")
    assert ",-1.5\n" in csv_text([row | {"top1_gain": -1.5}]), "numbers stay numbers"
    lines = latex([row | {"top1_gain": -1.5, "top1_gain_95": 2.0}]).splitlines()
    assert lines[:4] == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"recipe & seeds & top-1 \% & gain & NLL & ECE \\",
        r"\midrule",
    ]
    assert (
        lines[4]
        == r"a\_b \& 50\% & 2 & 1.00 $\pm$ 1.00 & $-$1.50 $\pm$ 2.00 & 1.000 $\pm$ 1.000 & 1.000 $\pm$ 1.000 \\"
    )
    assert lines[5:] == [r"\bottomrule", r"\end{tabular}"]


def test_student_options_are_not_for_the_teacher(tmp_path: Path) -> None:
    options = {"student": {"name": "cifar_resnet10_xxs"}, "data": {"root": "d"}, "method": {"temperature": 2}}
    plan = Plan(tmp_path, options | {"train": {"epochs": 3}})
    ((teacher,), (cell,)) = waves([plan.cell("cifar100-16px/kd-t2", 0)])
    assert (teacher.recipe, teacher.config.student.name) == ("cifar100-16px/teacher", "cifar_resnet10_l")
    assert teacher.config.data.root == cell.config.data.root == Path("d").absolute()
    assert teacher.config.train.epochs == cell.config.train.epochs == 3
    assert cell.config.method_options["temperature"] == 2


def test_runs_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    plan = Plan(tmp_path, {"output": str(tmp_path)})
    plan.cell("digits/ce", 0)
    with pytest.raises(ConfigError, match="would share the run directory"):
        plan.cell("digits/ce", 1)


def test_a_comparison_without_a_success_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["--student.options={bogus: 1}", f"--runs={tmp_path / 'runs'}"]
    assert main(["compare", "digits/ce", "--seeds=1", *bad]) == 2
    assert "no run of the comparison succeeded; digits/ce: " in capsys.readouterr().err


def test_a_comparison_without_a_success_leaves_the_tables_before_it(
    finished: tuple[Path, list[str]], tiny: Sequence[str]
) -> None:
    runs, recipes = finished
    before = (runs / "compare.md").read_bytes()
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    assert main(["compare", recipes[1], "--seeds=1", f"--runs={runs}", *options]) == 2
    assert (runs / "compare.md").read_bytes() == before


def test_terminal_table_fits_eighty_columns(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"top1": 42.123, "top1_std": 0.456, "nll": 2.1, "nll_std": 0.01, "ece": 0.1, "ece_std": 0.01}
    budget = {"budget": 0.1, "budget_std": 0.0, "budget_used": 0.0974, "budget_used_std": 0.001}
    row = {
        "recipe": "cifar100-16px/disk-constant",
        "setting": "cifar100-16px/disk-constant",
        "n": 3,
        "start_epochs": 20,
        "student_epochs": 30,
        **measured,
        **budget,
    }
    Console(width=80).print(table([row, row], DiSKTask.quantities({})))
    Console(width=80).print(table([row | {"recipe": "kd [t 2]"}]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "disk-constant" in out
    assert "kd [t 2]" in out
    assert "42.12 ± 0.46" in out
    assert "used/budget" in out
    assert "0.0974/0.1" in out
    row |= {"description": "d", "weight_decay": 5e-4, "parameters": 83852, "published": 58.14, "failed": ""}
    text = markdown([row], quantities=DiSKTask.quantities({}))
    assert "20+30" in text
    assert "| 0.1 | 0.0974 |" in text
    assert "used: budget used, mean g × CE, nats, in the last epoch.\n" in text
    assert "83,852 | 58.14" in text
    assert "0.0974" not in markdown([row]), "no name of a method's quantity is known"


def test_terminal_table_has_the_gain_and_leaves_out_what_all_rows_share(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"top1": 42.123, "top1_std": 0.456, "nll": 2.1, "nll_std": 0.01, "ece": 0.1, "ece_std": 0.01}
    row = {"recipe": "digits-demo/ce", "n": 10, "start_epochs": 0, "student_epochs": 100, **measured}
    gain = {"recipe": "digits-demo/disk-constant", "top1_gain": 29.7, "top1_gain_95": 11.55}
    used = {"budget": 0.01, "budget_std": 0.0, "budget_used": 0.1487, "budget_used_std": 0.01}
    Console(width=80).print(table([row, row | gain | used], DiSKTask.quantities({})))
    out = capsys.readouterr().out
    assert "10 seeds, 100 epochs each" in out
    assert "gain: over the baseline, paired by seed, ± half its 95% interval" in out
    assert re.search(r"disk-constant +42\.12 ± 0\.46 +\+29\.70 ± 11\.55 +2\.100 +0\.100 +0\.149/0\.01", out)
    assert "…" not in out
    Console(width=80).print(table([row, row | {"recipe": "digits-demo/kd", "n": 9}]))
    assert "10     100" in capsys.readouterr().out


def test_a_constant_helper_is_shown_without_a_budget(tmp_path: Path) -> None:
    cells = [Plan(tmp_path, {}).cell(f"digits-demo/{name}", 0) for name in ("disk-constant", "disk")]
    quantities = compare_run._compared_quantities(cell.config for cell in cells)
    assert next(quantity.limit for quantity in quantities if quantity.name == "budget_used") == "budget"
    constant, exact = (compare_run._measures(cell.config.quantities) for cell in cells)
    assert "budget" not in constant
    assert {"budget", "budget_used"} <= exact.keys()


def test_conditions_that_differ_are_told(tmp_path: Path) -> None:
    recipes = [f"cifar100/resnet10_s/{name}" for name in ("ce", "resnet10_l-kd", "resnet10_l-disk", "resnet18-kd")]
    asked = {recipe: [conditions(Plan(tmp_path, {}).cell(recipe, 0).config)] for recipe in recipes}
    text = conditions_text(asked)
    assert "- teacher.name: cifar_resnet10_l; cifar_resnet18 in cifar100/resnet10_s/resnet18-kd" in text
    assert "data." not in text
    same = conditions_text({recipe: asked[recipe] for recipe in recipes[1:3]})
    assert same.startswith("All rows have the same data, augmentation, epochs, start")


SEEN = """
seeds: 1
all: {data: {views: null}}
rows:
  labels: {recipe: digits/ce}
  stored: {recipe: digits/kd}
  online: {recipe: digits/kd, teacher: {store: false}}
"""


def test_rows_with_and_without_a_store_see_the_same_images(tmp_path: Path, tiny: Sequence[str]) -> None:
    """Each epoch a new view, the same one for every row; the line below the table is read from the runs themselves."""
    (tmp_path / "seen.yaml").write_text(SEEN)
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    command = ["compare", str(tmp_path / "seen.yaml"), f"--runs={tmp_path}", "--report=false", *options]
    assert main(command) == 0
    files = {row: tmp_path / f"seen/{row}/seed0/config.yaml" for row in ("labels", "stored", "online")}
    configs = {row: yaml.safe_load(file.read_text()) for row, file in files.items()}
    assert [config["data"]["views"] for config in configs.values()] == [2, 2, 2]
    assert [configs[row]["teacher"]["store"] for row in ("stored", "online")] == [True, False]
    assert "\nAll rows have the same data, augmentation" in (tmp_path / "seen.md").read_text()
    # A run that an earlier version began with fewer views, or none of its own, is told of.
    files["stored"].write_text(files["stored"].read_text().replace("  views: 2\n", "  views: 1\n"))
    files["labels"].write_text(files["labels"].read_text().replace("# disk-kd ", "# disk-kd 0.0."))
    assert main(command) == 0
    text = (tmp_path / "seen.md").read_text()
    assert "- data.views: 2; 1 in stored\n" in text
    assert re.search(r"- disk-kd: ([\d.]+); 0\.0\.\1 in labels\n", text)


def test_seeds_of_one_row_that_differ_are_told(tmp_path: Path) -> None:
    row = [{"data.views": 4, "train.lr": 0.1}, {"data.views": None, "train.lr": 0.1}]
    text = conditions_text({"kd": row, "ce": [{"data.views": 4, "train.lr": 0.1}] * 2})
    assert text.splitlines()[2:] == ["- data.views: 4; null in kd (run 2)"]


ROWS = """
description: two ways to learn
seeds: 2
baseline: plain
all: {train: {epochs: 1}}
rows:
  plain: {recipe: digits/ce}
  again: {recipe: digits/ce, start: plain, train: {weight_decay: 0.0}}
  kd:
    recipe: digits/kd
    method: {ce_weight: 0.2}
    grid: {method: [{temperature: 1.0}, {temperature: 4.0}], train.lr: [0.05, 0.1]}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """The folder of an experiment that ran on the command line."""
    root = tmp_path_factory.mktemp("experiment")
    (root / "ways.yaml").write_text(ROWS)
    options = [option for option in tiny if option.startswith(("--data", "--train")) and "epochs" not in option]
    assert main(["compare", str(root / "ways.yaml"), f"--runs={root / 'runs'}", *options]) == 0
    return root / "runs"


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def test_each_setting_is_tried_and_the_best_on_validation_runs_with_all_seeds(experiment: Path) -> None:
    settings = [row for row in rows_of(experiment / "ways.csv") if row["recipe"] == "kd"]
    assert {row["setting"] for row in settings} == {
        f"ways/kd/temperature={t},lr={lr}" for t in ("1.0", "4.0") for lr in ("0.05", "0.1")
    }
    (best,) = (row for row in settings if row["chosen"] == "True")
    assert best["n"] == "2"
    assert [row["n"] for row in settings].count("1") == 3
    assert {row["tried"] for row in settings} == {"4"}
    first = [json.loads((experiment / row["setting"] / "seed0/summary.json").read_text()) for row in settings]
    chosen = next(s for s, row in zip(first, settings, strict=True) if row is best)
    assert chosen["validation"]["top1"] == max(summary["validation"]["top1"] for summary in first)


def test_a_row_starts_from_another_of_the_same_seed(experiment: Path) -> None:
    for seed in (0, 1):
        summary = json.loads((experiment / f"ways/again/seed{seed}/summary.json").read_text())
        assert summary["start"] == str((experiment / f"ways/plain/seed{seed}/student.safetensors").absolute())
        assert (summary["start_epochs"], summary["weight_decay"]) == (1, 0.0)


def test_gain_is_paired_by_seed_and_what_differs_is_told(experiment: Path) -> None:
    top1 = {
        (row, seed): json.loads((experiment / f"ways/{row}/seed{seed}/summary.json").read_text())["test"]["top1"]
        for row in ("plain", "again")
        for seed in (0, 1)
    }
    differences = [top1["again", seed] - top1["plain", seed] for seed in (0, 1)]
    again = next(row for row in rows_of(experiment / "ways.csv") if row["recipe"] == "again")
    assert float(again["top1_gain"]) == pytest.approx(sum(differences) / 2)
    # Half of 12.706 times the difference: Student's t of one degree of freedom, and the deviation over sqrt 2.
    assert float(again["top1_gain_95"]) == pytest.approx(12.7062 * abs(differences[0] - differences[1]) / 2, rel=1e-4)
    text = (experiment / "ways.md").read_text()
    assert "| best of | setting |" in text
    assert "- train.weight_decay: " in text
    assert "- student.weights: null; of row plain in again\n" in text
    assert re.search(r"\| kd \| KD; ce_weight=0\.2, temperature=[14]\.0 \|", text)
    assert "| 1+1 | 0 |" in text


def test_an_experiment_has_a_page_of_its_rows(experiment: Path) -> None:
    """Rows go by their names in the file, not by their settings, with the seeds of each together."""
    page = (experiment / "ways.html").read_text()
    top1 = {
        row: [
            json.loads((experiment / f"ways/{row}/seed{seed}/summary.json").read_text())["test"]["top1"]
            for seed in (0, 1)
        ]
        for row in ("plain", "again")
    }
    for row, values in top1.items():
        assert f'<th scope="row">{row}</th>' in page
        assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in page
    assert '<th scope="row">kd</th>' in page
    assert "temperature=" not in page.split("config.yaml of")[0]
    assert "Gain over plain" in page
    gain = next(row for row in rows_of(experiment / "ways.csv") if row["recipe"] == "again")
    assert f'<td class="number">{float(gain["top1_gain"]):+.2f} ± {float(gain["top1_gain_95"]):.2f}</td>' in page
    told = [
        line[2:].replace("\\", "") for line in (experiment / "ways.md").read_text().splitlines() if line[:2] == "- "
    ]
    listed = page.split('<ul class="points">')[1].split("</ul>")[0]
    assert told
    assert list(map(html.unescape, re.findall("<li>(.*)</li>", listed))) == told, "as on the terminal"


def test_a_report_that_cannot_be_made_costs_no_table(
    finished: tuple[Path, list[str]], tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, _ = finished
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    (runs / "compare.html").unlink(missing_ok=True)
    (runs / "compare.html").mkdir()
    assert main(["compare", "digits/kd", "--seeds=1", f"--runs={runs}", *options]) == 0
    (runs / "compare.html").rmdir()
    out = capsys.readouterr().out
    assert "No report: " in out
    assert f"Tables: {runs / 'compare.md'}" in out
    assert "Report: " not in out


def test_interval_of_known_values() -> None:
    assert interval([2.0]) == (2.0, None)
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.30265 / 3**0.5), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {a: {recipe: digits/ce}}\nsead: 1", "unknown key 'sead' .*nearest: seeds"),
        ("rows: {}", "must have rows by name"),
        ("rows: {a: digits/ce}", "row 'a' .* must be a mapping with a recipe"),
        ("rows: {a: {recipe: digits/ce, grid: {train.lr: 0.1}}}", "must give a list of values by dotted option"),
        ("rows: {a: {recipe: digits/ce}}\nbaseline: b", "no row 'b' in the comparison"),
        ("rows: {a: {recipe: digits/ce, start: b}}", "no row 'b' in the comparison"),
        ("rows: {a: {recipe: digits/ce}}\nseeds: 2\ntuning_seeds: 0", "tuning_seeds must be from 1 to the 2 seeds"),
        ("rows: {a: {recipe: digits/ce}}\nseeds: three", "seeds must be a whole number, not 'three'"),
        ("rows: {a: {recipe: digits/ce}}\ntuning_seeds: 1.5", r"tuning_seeds must be a whole number, not 1\.5"),
        ("rows: {a: {recipe: digits/ce}}\nbaseline: 1", "no row '1' in the comparison"),
        (
            "rows: {a: {recipe: digits/ce, grid: {train.lr: [1, 2]}}, b: {recipe: digits/ce, start: a}}",
            "b starts from a, of which several settings are tried",
        ),
        (
            "rows: {a: {recipe: digits/ce, start: b}, b: {recipe: digits/ce, start: a}}",
            "rows cannot start from each other: a from b from a",
        ),
        ("rows: {a: {recipe: digits/ce}, a: {recipe: digits/kd}}", "key 'a' occurs twice, again in line 1"),
        ("rows: {a: {recipe: digits/ce, train: {seed: 3}}}", "row 'a' .* gives train.seed, which a comparison sets"),
        ("rows: {a: {recipe: digits/ce, grid: {output: [x, y]}}}", "row 'a' .* gives output"),
        ("rows: {../a: {recipe: digits/ce}}", "row '../a' .* must be the name of a folder"),
        ("rows: {a|b: {recipe: digits/ce}}", "must be the name of a folder, without '|'"),
        ("rows: {a: {recipe: digits/ce, grid: {train.lr: [0.1, 0.1]}}}", "has bad/a/lr=0.1 twice; leave one out"),
        (
            "rows: {a: {recipe: digits/ce}, b: {recipe: digits/ce, start: a, student: {weights: w}}}",
            "row 'b' .* has both start and student.weights",
        ),
    ],
)
def test_bad_experiments_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_experiment(path)


def test_an_unknown_option_of_a_row_stops_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("rows: {a: {recipe: digits/ce}, b: {recipe: digits/ce, train: {weight_deca: 0.1}}}")
    assert main(["compare", str(path), f"--runs={tmp_path / 'runs'}"]) == 2
    assert "unknown option train.weight_deca" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_experiment_without_rows_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("seeds: 2")
    assert main(["compare", str(tmp_path / "bad.yaml")]) == 2
    assert "must have rows by name" in capsys.readouterr().err


def test_settings_need_a_validation_split_to_be_chosen_by(tmp_path: Path) -> None:
    path = tmp_path / "unseen.yaml"
    path.write_text("all: {data: {validation: 0.0}}\nrows: {a: {recipe: digits/ce, grid: {train.lr: [0.1, 0.2]}}}")
    with pytest.raises(ConfigError, match=r"unseen/a/lr=0\.1 has no validation split to choose a setting by"):
        compare(read_experiment(path), runs=tmp_path / "runs", console=Console(quiet=True))


@pytest.fixture
def two_experiments(tmp_path: Path) -> list[str]:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("rows: {a: {recipe: digits/ce}}")
    return [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]


def test_several_experiments_run_one_after_another_whatever_becomes_of_the_first(
    two_experiments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def recorded(experiment: Experiment, *, name: str, **_: object) -> Comparison:
        ran.append(name)
        if name == "one":
            raise RunError("no run of the comparison succeeded")
        return Comparison([], [tmp_path / f"{name}.md"])

    monkeypatch.setattr("disk_kd.commands.comparisons.compare", recorded)
    assert main(["compare", *two_experiments, f"--runs={tmp_path / 'runs'}", "--quiet"]) == 2
    said = capsys.readouterr()
    assert ran == ["one", "two"]
    assert said.out.split() == [str(tmp_path / "two.md")]
    assert "one: no run of the comparison succeeded" in said.err


def test_all_experiments_are_checked_before_the_first_runs(
    two_experiments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(two_experiments[1]).write_text("rows: {a: {recipe: digits/ce, train: {weight_deca: 0.1}}}")
    assert main(["compare", *two_experiments, f"--runs={tmp_path / 'runs'}"]) == 2
    assert "unknown option train.weight_deca" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["digits/ce"], "leave digits/ce out"),
        (["--baseline=a"], "leave --baseline out"),
        (["--against=ce"], "leave --against out"),
    ],
)
def test_experiments_stand_beside_no_recipes(
    more: list[str], message: str, two_experiments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *two_experiments, *more]) == 2
    assert message in capsys.readouterr().err


def test_experiments_of_one_name_are_refused(two_experiments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", two_experiments[0], two_experiments[0]]) == 2
    assert "experiments with the same name would share their tables" in capsys.readouterr().err


FULL = sorted((Path(__file__).parent.parent / "results" / "full").glob("*.yaml"))


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_the_experiments_at_full_length_name_recipes_and_options_that_there_are(path: Path, tmp_path: Path) -> None:
    experiment = read_experiment(path)
    assert all(load_recipe(find_recipe(row.recipe)) for row in experiment.rows)
    first = experiment.rows[0]
    assert Plan(tmp_path, {}).cell(first.recipe, 0, first.options, first.folder).config.data.name == "cifar100"
