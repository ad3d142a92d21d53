from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch

from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.errors import ConfigError, ModelError
from disk_kd.helpers import exact_helper
from disk_kd.report import Outputs, Run, csv_text, found_faults, inspect_run, report
from disk_kd.tasks import default_help
from disk_kd.tasks.disk_help import ExactHelp


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_examples_are_written_the_most_helped_first(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.csv"
    assert main(["inspect", str(runs / "disk" / "seed0"), f"--output={output}", "--device=cpu"]) == 0
    assert f"Written: {output}, 120 examples; the exact helper of DiSK: price" in capsys.readouterr().out
    rows = read(output)
    assert list(rows[0]) == [
        *("rank", "index", "path", "label", "teacher_guess", "student_guess", "teacher_p_label", "teacher_p_guess"),
        *("student_p_label", "student_p_guess", "student_loss", "teacher_loss", "mean_g"),
    ]
    help = [float(row["mean_g"]) for row in rows]
    assert len(rows) == 120
    assert help == sorted(help, reverse=True)
    assert 0 < help[0] <= 1
    train = load_dataset("digits", limit_train=120).train
    labels = dict(zip(train.ids.tolist(), train.targets.tolist(), strict=True))
    assert {int(row["index"]): int(row["label"]) for row in rows} == labels
    assert all(float(row["student_p_label"]) <= float(row["student_p_guess"]) for row in rows)


def test_g_is_that_of_the_exact_helper_over_the_views(runs: Path) -> None:
    run, outputs = Run.read(runs / "disk" / "seed0"), Outputs("cpu")
    found = inspect_run(run, outputs, views=4)
    assert found.views == 1, "without augmentation all views are the same"
    student = outputs.student(run)
    split = found.split
    images = (split.images.float() / 255 - 0.5) / 0.5
    mean, std = student.pretrained_cfg["mean"], student.pretrained_cfg["std"]
    images = (split.images.float() / 255 - sum(mean) / 3) / (sum(std) / 3)
    with torch.no_grad():
        logits = student(images), outputs.teacher(run.config, student)(images)["logits"]
    expected = exact_helper(
        *logits,
        split.targets,
        top_k=10,
        student_temperature=2.0,
        teacher_temperature=2.0,
        price=(run.summary or {})["end"]["price"],
        max_ce=5.0,
    )
    torch.testing.assert_close(found.help, expected, atol=1e-4, rtol=1e-3)
    assert expected.max() > 0


def test_augmented_views_are_those_of_training(runs: Path, tiny: list[str], tmp_path: Path) -> None:
    options = [*tiny, "--method=kd", "--teacher.name=cifar_resnet10_xxs", f"--teacher.weights={runs / 'teacher'}"]
    options += ["--data.views=3", "--data.augment.crop_padding=1", f"--runs={tmp_path}", f"--output={tmp_path / 'r'}"]
    assert main(["distill", *options]) == 0
    run = Run.read(tmp_path / "r")
    one, three = (inspect_run(run, Outputs("cpu"), views=views) for views in (1, 9))
    assert (one.views, three.views) == (1, 3)
    assert not torch.equal(one.help, three.help)


def test_other_methods_and_prices(runs: Path) -> None:
    disk, kd = Run.read(runs / "disk" / "seed0"), Run.read(runs / "kd" / "seed0")
    at_end = (disk.summary or {})["end"]["price"]
    outputs = Outputs("cpu")
    ours, cheap, free, dear = (
        inspect_run(run, outputs, price=price, most=60)
        for run, price in ((disk, None), (disk, 0.3), (kd, None), (kd, 50.0))
    )
    assert ours.helper == ExactHelp(10, 2.0, 2.0, 5.0, price=at_end)
    assert cheap.helper == ExactHelp(10, 2.0, 2.0, 5.0, price=0.3)
    assert free.helper == ExactHelp(10, 2.0, 2.0, 5.0, price=0.0)
    assert default_help(4).top_k == 4
    assert free.help.mean() > dear.help.mean()


OWN_HELP = """
from disk_kd.tasks import KDTask


class Doubt:
    name, settings = "my doubt", "no settings"

    def __call__(self, student_BC, teacher_BC, targets_B):
        return 1 - student_BC.softmax(1).amax(1)


class Doubting(KDTask):
    def example_help(self, logged, price=None):
        return Doubt()
"""


def test_another_method_can_help_examples(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "doubting.py").write_text(OWN_HELP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = shutil.copytree(runs / "kd" / "seed0", tmp_path / "own")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("  name: kd\n", "  name: doubting:Doubting\n"))
    assert main(["inspect", str(folder), "--limit=40", "--device=cpu"]) == 0
    assert "40 examples; my doubt: no settings" in capsys.readouterr().out
    rows = read(folder / "inspect.csv")
    doubts = [1 - float(row["student_p_guess"]) for row in rows]
    assert [float(row["mean_g"]) for row in rows] == pytest.approx(doubts, abs=1e-4)
    text = report([folder], device="cpu").read_text()
    assert "Examples with most help" in text
    assert "Help is computed by my doubt for own" in text


def test_a_limit_spaces_evenly(runs: Path) -> None:
    run = Run.read(runs / "kd" / "seed0")
    some = inspect_run(run, Outputs("cpu"), most=7)
    assert (len(some.split), some.of) == (7, 120)
    assert len(csv_text(some).splitlines()) == 8


def test_labels_that_were_flipped_are_found(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.csv"
    arguments = ["inspect", str(runs / "noisy"), f"--output={output}", "--by=teacher-loss", "--device=cpu"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    rows = read(output)
    clean = load_dataset("digits", limit_train=120).train
    labels = dict(zip(clean.ids.tolist(), clean.targets.tolist(), strict=True))
    assert sum(int(row["flipped"]) for row in rows) == 12
    assert all(int(row["flipped"]) == (int(row["label"]) != labels[int(row["index"])]) for row in rows)
    losses = [float(row["teacher_loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    precision = sum(int(row["flipped"]) for row in rows[:12]) / 12
    assert re.search(rf"teacher-loss .* {precision:.3f} ", told)
    found = {each.by: each for each in found_faults(inspect_run(Run.read(runs / "noisy"), Outputs("cpu")))}
    assert found["teacher-loss"].precision == pytest.approx(precision)
    assert found["teacher-loss"].faults == 12
    assert found_faults(inspect_run(Run.read(runs / "kd" / "seed0"), Outputs("cpu"))) == []


def test_rankings_are_checked(runs: Path) -> None:
    found = inspect_run(Run.read(runs / "kd" / "seed0"), Outputs("cpu"), most=5)
    with pytest.raises(ConfigError, match="unknown ranking 'g'; valid: help, student-loss"):
        found.scores("g")  # type: ignore[arg-type]


def test_mistakes_get_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="has no teacher, so there is no help to compute"):
        inspect_run(Run.read(runs / "ce" / "seed0"), Outputs("cpu"))
    for arguments, message in (
        ([str(runs / "ce" / "seed0")], "has no teacher"),
        ([str(tmp_path)], "is not a run directory"),
        ([str(runs / "kd" / "seed0"), "--by=g"], "invalid choice: 'g'"),
        ([str(runs / "kd" / "seed0"), "--views=0"], "must be from 1 to 1,000,000, not 0"),
    ):
        assert main(["inspect", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
