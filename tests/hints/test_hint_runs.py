"""Feature methods through the command line: logged, dropped or kept with the student, resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from disk_kd.cli import main
from disk_kd.models import create_model
from disk_kd.training import Display


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> list[str]:
    """A command that learns from a teacher of twice the student's width."""
    folder = tmp_path_factory.mktemp("hints")
    teacher = ["--student.name=cifar_resnet10_s", "--train.epochs=1"]
    assert main(["train", *tiny, *teacher, f"--output={folder / 'teacher'}"]) == 0
    return [
        "distill",
        *tiny,
        f"--runs={folder}",
        f"--teacher.weights={folder / 'teacher'}",
        "--teacher.name=cifar_resnet10_s",
    ]


def logged(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def assert_measured(what: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """`disk-kd evaluate` finds what the summary says."""
    capsys.readouterr()
    assert main(["evaluate", str(what), "--data.name=digits", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured == pytest.approx({name: summary["test"][name] for name in measured})


def test_a_hint_beside_disk_is_logged_and_dropped(
    learn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*learn, "--hint", "fitnet", "--method", "disk", "--hint.weight=10", f"--output={run}"]) == 0
    assert all(line["hint_loss"] > 0 and "scaffold_loss" in line for line in logged(run))
    plain = create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    assert load_file(run / "student.safetensors").keys() == plain.state_dict().keys()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["parameters"] == sum(p.numel() for p in plain.parameters())
    assert_measured(run, summary, capsys)


def test_simkd_is_rebuilt_from_its_file_alone(
    learn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone" / "student.safetensors"
    command = [*learn, "--hint", "simkd", "--hint.factor=4", "--method", "ce", "--method.ce_weight", "0"]
    assert main([*command, f"--output={run}"]) == 0
    for line in logged(run):
        assert line["loss"] == pytest.approx(line["hint_loss"])
    summary = json.loads((run / "summary.json").read_text())
    assert_measured(run, summary, capsys)
    alone.parent.mkdir()
    shutil.move(run / "student.safetensors", alone)
    assert_measured(alone, summary, capsys)
    plain = create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    assert summary["parameters"] > sum(p.numel() for p in plain.parameters())


def test_crd_resumed_is_the_run_that_was_never_stopped(
    learn: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory, its count of batches and so its negatives come back."""
    command = [*learn, "--method=ce", "--hint=crd", "--hint.negatives=50", "--train.checkpoint_every_s=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*command, f"--output={whole}"]) == 0

    def stop(display: Display, done: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stop)
        assert main([*command, f"--output={broken}"]) == 130
    assert not (broken / "student.safetensors").exists()
    assert main([*command, f"--output={broken}", "--resume"]) == 0
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert any(name.endswith("contrast.memory") for name in load_file(broken / "last" / "checkpoint.safetensors"))


def test_sdd_stores_logits_of_regions(learn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8x8 digits leave one place on the last map: refused, until they are larger."""
    command = [*learn, "--method=ce", "--hint=sdd", f"--runs={tmp_path}", f"--output={tmp_path / 'run'}"]
    assert main([*command, "--hint.scales=2"]) == 2
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "hint.scales must be a list of whole numbers, not 2" in error
    assert "the student's last map, 1x1 of ResNet, has no 2x2 regions; give larger images (data.image_size" in error
    larger = ["--data.image_size=16", "--teacher.image_size=16", "--data.views=1", "--teacher.store=true"]
    assert main([*command, *larger]) == 0
    assert all(line["hint_loss"] > 0 for line in logged(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "teacher-store").rglob("*.npy")] == ["regions1-2.view0.npy"]


def test_plain_training_takes_no_hint(tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *tiny, "--hint", "fitnet", f"--output={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error == "disk-kd: disk-kd train is for cross-entropy; run fitnet with disk-kd distill\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "least"), [(["--hint=rkd"], 3), (["--hint=sp"], 2), (["--method=dist"], 3), (["--hint=fitnet"], 2)]
)
def test_too_small_a_batch_is_refused_before_anything_is_written(
    learn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], least: int
) -> None:
    command = [*learn, *options, f"--train.batch_size={least - 1}", f"--output={tmp_path / 'run'}"]
    assert main(command) == 2
    assert (
        f"needs at least {least} images at a time, not {least - 1}; raise train.batch_size" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
