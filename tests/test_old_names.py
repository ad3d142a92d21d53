"""Names that earlier versions used are read on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disk_kd.arguments import parse_run
from disk_kd.config import RunConfig
from disk_kd.recipe import load_recipe
from disk_kd.report.reading import Run
from disk_kd.summary import last_metrics, read_summary


def test_an_option_by_its_old_name_is_read_with_a_notice() -> None:
    with pytest.warns(UserWarning, match=r"train\.passes is now called train\.epochs; the old name is still read"):
        config = parse_run("distill", ["digits/kd", "--train.passes=3", "--train.warmup_passes=1"])
    assert (config.train.epochs, config.train.warmup_epochs) == (3, 1.0)
    with pytest.warns(UserWarning, match="method.helper_passes is now called"):
        config = parse_run("distill", ["--method=disk", "--method.helper_passes=2"])
    assert config.method_options["helper_epochs"] == 2


@pytest.mark.filterwarnings("error")
def test_a_run_of_an_earlier_version_is_read_without_one(tmp_path: Path) -> None:
    tree = RunConfig.from_tree({"train": {"epochs": 4}, "output": str(tmp_path)}).to_yaml()
    old = tree.replace("warmup_epochs", "warmup_passes").replace("cooldown_epochs", "cooldown_passes")
    (tmp_path / "config.yaml").write_text(old.replace("\n  epochs:", "\n  passes:"))
    assert load_recipe(tmp_path / "config.yaml")["train"]["epochs"] == 4
    assert RunConfig.read(tmp_path).train.epochs == 4


def test_summary_and_log_of_an_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(RunConfig.from_tree({"output": str(tmp_path)}).to_yaml())
    numbers = ("parameters", "multiply_adds", "train_samples", "threads", "peak_memory_bytes")
    others = {**dict.fromkeys(numbers, 1), "peak_device_memory_bytes": None, "start": "scratch", "hardware": "a CPU"}
    others |= {"versions": {}, "git_revision": None, "last": {}}
    old = {"student_passes": 3, "start_passes": 1, "selected_pass": 2}
    (tmp_path / "summary.json").write_text(json.dumps(old | others))
    line = {"kind": "train", "step": 2, "phase": "student", "train_pass": 0, "loss": 1.0, "lr": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert read_summary(tmp_path) == {"student_epochs": 3, "start_epochs": 1, "selected_epoch": 2} | others
    assert last_metrics(tmp_path, RunConfig.read(tmp_path))["epoch"] == 0
    assert Run.read(tmp_path).lines[0]["epoch"] == 0
