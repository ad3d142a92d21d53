"""`disk-kd advise`: the teacher's quality is that of `evaluate`, numbers follow from the measured times, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import disk_kd
from disk_kd.advising import Advice, page, timing
from disk_kd.advising.look import Room, Seconds, Size, TeacherQuality
from disk_kd.cli import main
from disk_kd.errors import ConfigError

DATA = {"limit_train": 60, "limit_test": 40, "views": 2}
MADE = Advice(
    recipe="digits/kd",
    data="digits",
    images=1000,
    classes=10,
    image_size=8,
    device="cpu with 2 of 2 cores",
    epochs=30,
    batch_size=50,
    precision="fp32",
    views=4,
    evaluate_every=10,
    models={"student": "small", "teacher": "large"},
    teacher=TeacherQuality("validation", 200, top1=90.0, nll=0.3, ece=0.08, temperature=1.5, ece_scaled=0.02),
    sizes={"student": Size(1_000, 2_000), "teacher": Size(10_000, 20_000)},
    seconds=Seconds(labels=1.0, online=3.0, stored=1.0, view=2.0, validation=5.0, other_precision=1.0),
    room=Room(2**20, 2**33, 2**33, 2**10, 2**20, 2**12),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> disk_kd.Run:
    folder = tmp_path_factory.mktemp("advised") / "teacher"
    train = {"epochs": 3, "batch_size": 20, "compile": False}
    return disk_kd.train(data=DATA, student={"name": "cifar_resnet10_xxxs"}, train=train, output=str(folder))


def test_the_teacher_is_measured_as_evaluate_measures_it(
    teacher: disk_kd.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "MEASURED_S", 0.01)
    monkeypatch.chdir(tmp_path)
    options = [f"--data.{name}={value}" for name, value in DATA.items()]
    models = ["--student.name=cifar_resnet10_xxxs", "--teacher.name=cifar_resnet10_xxxs"]
    command = ["advise", *options, *models, f"--teacher.weights={teacher.folder}", "--train.batch_size=20", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    measured = disk_kd.evaluate(teacher, split="validation")
    assert found["teacher"]["images"] == measured["samples"]
    for name in ("top1", "nll", "ece"):
        assert found["teacher"][name] == pytest.approx(measured[name], abs=1e-4)
    assert found["sizes"]["student"]["parameters"] == teacher.summary["parameters"]
    assert found["sizes"]["teacher"]["multiply_adds"] == teacher.summary["multiply_adds"]
    assert all(value > 0 for value in found["seconds"].values())
    assert found["room"]["activation_bytes_per_image"] > 8 * 8 * 4
    assert not any(tmp_path.iterdir())


def test_hours_follow_from_the_measured_seconds() -> None:
    hours = MADE.hours(100)
    assert hours["labels"] == pytest.approx((100 * 1 + 10 * 5) / 3600)
    assert hours["online"] == pytest.approx((100 * 3 + 10 * 5) / 3600)
    assert hours["stored"] == pytest.approx((100 * 1 + 4 * 2 + 10 * 5) / 3600)
    assert replace(MADE, views=None).hours(100)["stored"] == pytest.approx((100 * 1 + 100 * 2 + 10 * 5) / 3600)


def test_views_that_fit() -> None:
    assert MADE.affordable_views == 1024
    assert MADE.views_that_fit == 4096


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Store the teacher's outputs"),
        ({}, "The teacher is too confident"),
        ({"images": 300}, "There are 30 images a class"),
        ({"seconds": replace(MADE.seconds, online=1.1)}, "Run the teacher in each step"),
        ({"seconds": replace(MADE.seconds, other_precision=0.5)}, "Give --train.precision bf16"),
        ({"teacher": replace(MADE.teacher, top1=11.0)}, "near chance"),
        ({"batch_size": 10_000}, "does not fit"),
    ],
)
def test_the_page_says_what_to_try_and_why(changes: dict[str, Any], said: str) -> None:
    text = page(replace(MADE, **changes))
    assert said in " ".join(text.split())
    assert "disk-kd tune digits/kd --hours" in " ".join(text.split())
    assert "results/tuned-kd/README.md" in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) < 60


def test_without_a_teacher_there_is_nothing_to_advise() -> None:
    with pytest.raises(ConfigError, match="method ce has no teacher to advise on; give --method kd"):
        disk_kd.advise("digits/ce")
