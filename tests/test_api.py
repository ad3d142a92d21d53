"""The functions that a script calls: the same runs as the commands make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import disk_kd
from disk_kd.cli import main
from disk_kd.config import RunConfig
from disk_kd.errors import CheckpointError, ConfigError

TINY: dict[str, Any] = {
    "data": {"limit_train": 60},
    "student": "cifar_resnet10_xxxs",
    "train": {"epochs": 1, "batch_size": 30, "warmup_epochs": 0, "compile": False},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> disk_kd.Run:
    return disk_kd.train(**TINY, output=str(tmp_path_factory.mktemp("runs") / "teacher"))


def test_a_teacher_and_its_student(teacher: disk_kd.Run, tmp_path: Path) -> None:
    weights = {"name": "cifar_resnet10_xxxs", "weights": str(teacher.folder)}
    run = disk_kd.distill(**TINY, teacher=weights, method={"name": "disk", "budget": 0.1}, runs=tmp_path)
    assert run.folder == tmp_path / "cifar_resnet10_xxxs-disk" / "seed0"
    assert (run.config.method_options["budget"], run.summary["method"]) == (0.1, "disk")
    again = disk_kd.distill(run.config.__class__.read(run.folder, runs=tmp_path, resume=True))
    assert again.summary == run.summary, "a finished run is given back"
    measured = disk_kd.evaluate(run)
    assert measured["top1"] == run.summary["test"]["top1"]
    assert disk_kd.evaluate(run.folder, split="validation")["top1"] == run.summary["validation"]["top1"]
    student = run.student()
    assert not student.training
    assert student(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_same_run_as_the_command(teacher: disk_kd.Run, tmp_path: Path) -> None:
    command = ["--data.limit_train=60", "--student.name=cifar_resnet10_xxxs", "--train.epochs=1", "--quiet"]
    command += ["--train.batch_size=30", "--train.warmup_epochs=0", "--train.compile=false"]
    assert main(["train", *command, f"--output={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run/student.safetensors").read_bytes() == (teacher.folder / "student.safetensors").read_bytes()


def test_a_configuration_is_its_text(teacher: disk_kd.Run) -> None:
    text = (teacher.folder / "config.yaml").read_text()
    tree = yaml.safe_load(text)
    assert RunConfig.from_tree(tree).to_tree() == tree
    assert RunConfig.from_tree(tree).to_yaml() == text


def test_a_comparison_of_rows(tmp_path: Path) -> None:
    rows = {"small": {"recipe": "digits/ce"}, "smaller": {"recipe": "digits/ce", "student": "cifar_resnet10_xxxs"}}
    options = {"data": {"limit_train": 60}, "train": TINY["train"], "student": {"name": "cifar_resnet10_xxs"}}
    rows["smaller"]["student"] = "cifar_resnet10_xxxs"
    common = {key: value for key, value in options.items() if key != "student"}
    rows["small"] |= {"student": options["student"]}  # type: ignore[dict-item]
    done = disk_kd.compare(rows, seeds=1, baseline="small", runs=tmp_path, name="sizes", **common)
    assert [row["recipe"] for row in done.rows] == ["small", "smaller"]
    assert done.rows[1]["top1_gain"] == pytest.approx(done.rows[1]["top1"] - done.rows[0]["top1"])
    assert (tmp_path / "sizes.md").is_file()
    assert (tmp_path / "sizes/smaller/seed0/summary.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": {"lr": "x"}}, "train.lr must be a number, not 'x'"),
        ({"train": {"epoch": 3}}, r"unknown option train\.epoch; nearest: "),
        ({"method": "nothing"}, "unknown method 'nothing'"),
        ({"data": 3}, "data must be a mapping of options, not 3"),
        ({"methods": "kd"}, "unknown option methods; nearest: method"),
        ({"student": {"name": 3}}, "student.name must be text, not 3"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        disk_kd.distill(**options)


def test_no_student(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights at .*gone"):
        disk_kd.load_student(tmp_path / "gone")
