"""`disk-kd tune`: equal effort, no test split, the same end after interruptions, and bad input in one line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import yaml

from disk_kd.cli import main
from disk_kd.config import RunConfig
from disk_kd.errors import ConfigError, RunError
from disk_kd.recipe import find_recipe
from disk_kd.tuning import Tuned, TuneRequest, read_request, tune
from disk_kd.tuning.candidate import shortened
from disk_kd.tuning.journal import Journal, Result
from disk_kd.tuning.search import Search, lengths
from disk_kd.tuning.space import Dimension, read_space

pytest.importorskip("optuna")

OPTIONS: dict[str, Any] = {
    "data": {"limit_train": 50, "limit_test": 30, "validation": 0.2, "views": 2},
    "student": {"name": "cifar_resnet10_xxxs"},
    "teacher": {"name": "cifar_resnet10_xxxs"},
    "train": {"epochs": 15, "batch_size": 20, "warmup_epochs": 2, "evaluate_every": 15, "compile": False},
}
FULL_RUNS, EPOCHS = 5, 15
METHODS = ["ce", "kd"]


class Here(Executor):
    """Runs in this process, in the place of worker processes; it fails after some of them, as if it were killed."""

    def __init__(self, most: int = sys.maxsize) -> None:
        self.left = most
        self.summaries: list[Any] = []

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        future: Future[Any] = Future()
        future.set_result(work(*given, **named))
        self.summaries.append((given[1], future.result()))
        return future


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    options = [f"--data.{name}={value}" for name, value in OPTIONS["data"].items()]
    options += ["--student.name=cifar_resnet10_xxxs", "--train.epochs=2", "--train.batch_size=20", "--quiet"]
    assert main(["train", *options, f"--output={folder}"]) == 0
    return folder


def request_in(folder: Path, teacher: Path, **changes: Any) -> TuneRequest:
    given = {**OPTIONS, "teacher": {**OPTIONS["teacher"], "weights": str(teacher)}}
    settings: dict[str, Any] = {"full_runs": FULL_RUNS, "methods": METHODS, "seeds": 2, "runs": folder}
    return read_request("digits/kd", given, **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> tuple[Tuned, Path, Here]:
    """A search that was never stopped."""
    folder, workers = tmp_path_factory.mktemp("whole"), Here()
    done = tune(request_in(folder, teacher), make=lambda jobs: workers)
    return done, folder / "tune/digits/kd", workers


def results_of(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {line["key"]: (line["top1"], line["setting"]) for line in lines if line["kind"] == "run"}


def test_labels_alone_get_at_least_the_effort_of_distillation(whole: tuple[Tuned, Path, Here]) -> None:
    labels, distilled = whole[0].searches
    budget = FULL_RUNS * EPOCHS // 2
    assert (labels.candidate.name, distilled.candidate.name) == ("ce", "kd")
    assert distilled.spent <= budget <= labels.spent
    assert budget - distilled.spent < EPOCHS
    for search in (labels, distilled):
        assert search.spent == sum(epochs for one in search.tried for epochs in one.results)
        assert search.tried[0].top1(EPOCHS) is not None  # the recipe's own setting is never stopped early
    assert any(EPOCHS not in one.results for search in (labels, distilled) for one in search.tried)


def test_the_search_reads_no_test_split_and_the_confirmation_does(whole: tuple[Tuned, Path, Here]) -> None:
    searched = [summary for test, summary in whole[2].summaries if not test]
    confirmed = [summary for test, summary in whole[2].summaries if test]
    assert searched
    assert not any("test" in summary or "test" in summary["last"] for summary in searched)
    assert len(confirmed) == 4
    assert all("test" in summary for summary in confirmed)
    assert {summary["seed"] for summary in searched} == {0}
    assert {summary["seed"] for summary in confirmed} == {1, 2}


def test_what_it_writes_can_be_used(whole: tuple[Tuned, Path, Here]) -> None:
    done, folder, _ = whole
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(search.tried) for search in done.searches)
    config = RunConfig.of_recipe(find_recipe(str(folder / "best.yaml")), {})
    assert config.method in METHODS
    assert config.train.epochs == EPOCHS
    assert done.gain.sentence in (folder / "table.md").read_text()
    assert "<svg" in (folder / "importance.svg").read_text()
    assert json.loads((folder / "result.json").read_text())["gain"]["seeds"] == 2
    assert done.gain.sentence.startswith("Distilling")


def test_interrupted_twice_it_ends_the_same(whole: tuple[Tuned, Path, Here], teacher: Path, tmp_path: Path) -> None:
    request = request_in(tmp_path, teacher)
    for most in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            tune(request, make=lambda jobs, most=most: Here(most))
    with (request.folder / "journal.jsonl").open("a") as file:
        file.write('{"kind": "run", "key": "kd/0')  # a line that a kill cut off
    last = Here()
    done = tune(request, make=lambda jobs: last)
    assert results_of(request.folder) == results_of(whole[1])
    assert done.gain.points == whole[0].gain.points
    assert len(last.summaries) == len(whole[2].summaries) - 5  # nothing that ended is run again


def test_another_search_in_the_folder_is_refused_and_stays(
    whole: tuple[Tuned, Path, Here], teacher: Path, tmp_path: Path
) -> None:
    before = (whole[1] / "journal.jsonl").read_text()
    request = request_in(tmp_path, teacher, full_runs=FULL_RUNS + 2, output=whole[1])
    with pytest.raises(RunError, match=r"holds a search with another runs; go on with the same command, or give"):
        tune(request, make=lambda jobs: Here())
    assert (whole[1] / "journal.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"space": {}}, "must give a range or a list of values for at least one option"),
        ({}, "must hold 'space', a mapping of options, or 'methods', a list, or both"),
        ({"spaces": {}}, "unknown key 'spaces' in the space; nearest: space"),
        ({"space": {"method.temprature": [1.0]}}, r"unknown option method.temprature .* nearest: method.temperature"),
        ({"space": {"train.lrr": [0.1]}}, "unknown option train.lrr"),
        ({"space": {"train.epochs": [1]}}, "train.epochs in the space of the space is set by disk-kd tune"),
        ({"space": {"data.label_noise": [0.1]}}, "cannot be searched over, since its runs could not be compared"),
        ({"space": {"train.lr": {"low": 1.0, "high": 0.1}}}, "needs numbers low < high"),
        ({"space": {"train.lr": {"low": 0.1, "high": 1.0, "step": 2}}}, "unknown key 'step' of train.lr"),
        ({"space": {"train.lr": [-1.0, 0.1]}}, "train.lr must be positive"),
        ({"space": {"train": [{"epochs": 3}, {"epochs": 5}]}}, "train in the space of the space is a whole section"),
        ({"space": {"teacher": [None]}}, "teacher in the space of the space must list teachers"),
        ({"methods": ["kdd"]}, "unknown method 'kdd'"),
        ({"methods": ["ce"]}, "needs a method to compare with ce"),
    ],
)
def test_a_bad_space_is_refused(space: dict[str, Any], message: str, tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        request_in(tmp_path, teacher, methods=None, space=space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_runs": 1}, "--runs 1 is too small: each of ce, kd needs a full run; give at least 2"),
        ({"full_runs": None}, "give the length of the search with --hours H or with --runs N"),
        ({"full_runs": None, "hours": -1.0}, "--hours must be above 0 and finite, not -1.0"),
    ],
)
def test_a_bad_length_is_refused(changes: dict[str, Any], message: str, tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        request_in(tmp_path, teacher, **changes)


def test_hours_that_are_too_few_are_refused_before_anything_is_written(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"--hours 1e-06 is too short: two runs of 15 epochs take about"):
        tune(request_in(tmp_path / "runs", teacher, full_runs=None, hours=1e-6), make=lambda jobs: Here())
    assert not (tmp_path / "runs").exists()


def test_a_search_without_validation_or_optuna_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", "digits/kd", "--runs=6", f"--folder={tmp_path}"]
    assert main([*command, "--data.validation=0"]) == 2
    assert "needs a validation split to choose by; set data.validation above 0" in capsys.readouterr().err
    assert main([*command, "--method=dkd"]) == 2
    assert "--method is chosen by the search; give --methods" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(command) == 2
    assert capsys.readouterr().err == "disk-kd: disk-kd tune needs the package optuna: pip install 'disk-kd[tune]'\n"
    assert not any(tmp_path.iterdir())


def test_a_recipe_may_hold_the_space_and_still_trains(tmp_path: Path, teacher: Path) -> None:
    recipe = tmp_path / "own.yaml"
    section = {"methods": ["kd"], "space": {"train.lr": [0.1, 0.2], "method.kd_weight": {"low": 0.5, "high": 5.0}}}
    recipe.write_text(yaml.safe_dump({"base": "digits/kd", "tune": section, "teacher": {"weights": str(teacher)}}))
    labels, distilled = read_request(str(recipe), full_runs=4, runs=tmp_path).candidates
    assert [one.option for one in labels.space] == ["train.lr"]
    assert {one.option for one in distilled.space} == {"train.lr", "method.kd_weight"}
    assert RunConfig.of_recipe(recipe, {}).method == "kd"


def test_a_shorter_run_has_a_whole_schedule_of_its_own() -> None:
    config = RunConfig.of_recipe(find_recipe("digits-methods/dkd"), {"teacher": {"weights": "w"}})
    short = shortened(config, 25)
    assert (config.train.epochs, config.train.warmup_epochs, config.method_options["warmup_epochs"]) == (100, 16, 8)
    assert (short.train.epochs, short.train.warmup_epochs, short.method_options["warmup_epochs"]) == (25, 4, 2)
    assert lengths(100) == (11, 33, 100)
    assert lengths(20) == (7, 20)
    assert lengths(10) == (10,)


def test_values_are_moved_into_the_space() -> None:
    rate, listed = read_space({"train.lr": {"low": 0.1, "high": 1.0}, "method.temperature": [1.0, 2.0, 4.0]}, "x")
    assert rate.parameter(3.0) == 1.0
    assert listed.parameter(3.5) == "4.0"
    assert Dimension("train.lr", low=1, high=3, whole=True).extremes == (1, 3)


def test_a_range_for_an_option_that_is_unset_is_drawn(tmp_path: Path, teacher: Path) -> None:
    request = request_in(tmp_path, teacher, space={"space": {"train.clip_grad": {"low": 0.1, "high": 2.0}}})
    assert request.candidates[1].first == ({},)
    (job,) = next(Search(request.candidates[1], EPOCHS, may_begin=lambda spent, cost: spent == 0).run())
    assert 0.1 <= job.setting["train.clip_grad"] <= 2


def test_labels_with_a_hint_have_each_option_once(tmp_path: Path, teacher: Path) -> None:
    request = request_in(tmp_path, teacher, methods=["ce+fitnet"])
    options = [one.option for one in request.candidates[1].space]
    assert len(options) == len(set(options))
    next(Search(request.candidates[1], EPOCHS, may_begin=lambda spent, cost: spent == 0).run())


def test_the_journal_keeps_the_time_over_interruptions(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study", {"recipe": "a"})
    journal.add("kd/000-5epochs", Result(50.0, 1.5))
    used_s = journal.used_s
    again = Journal(tmp_path / "study", {"recipe": "a"})
    assert again.result("kd/000-5epochs") == Result(50.0, 1.5)
    assert again.used_s == pytest.approx(used_s, abs=0.5)
    with pytest.raises(RunError, match="another recipe"):
        Journal(tmp_path / "study", {"recipe": "b"})
    (tmp_path / "study/journal.jsonl").write_text("x\n")
    with pytest.raises(RunError, match="is damaged"):
        Journal(tmp_path / "study", {"recipe": "a"})
