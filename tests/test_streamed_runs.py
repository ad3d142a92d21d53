"""ImageNet's way in small, by the real commands: JPEG files, timm's models and augmentation, another resolution for the
teacher, two processes, one of them killed; then export and evaluation."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from data.test_stream import damage, write_jpegs
from disk_kd.cli import main
from processes import start_ranks
from test_ranks import lines

TEACHER = {"name": "test_vit", "options": {"img_size": 54, "patch_size": 9}}
DATA: dict[str, Any] = {"name": "folder", "root": "jpegs", "image_size": 32, "crop_pct": 0.9, "skip_unreadable": True}
RECIPE: dict[str, Any] = {
    "data": DATA
    | {
        "timm": {"enabled": True, "auto_augment": "rand-m5", "reprob": 0.3},
        "mix": {"mixup": 0.2, "cutmix": 1.0},
        "workers": 1,
    },
    "student": {"name": "test_resnet"},
    "teacher": {**TEACHER, "weights": "teacher", "image_size": 54},
    "method": {"name": "disk", "label_smoothing": 0.1},
    "train": {"epochs": 25, "batch_size": 16, "lr": 0.01, "log_every": 1, "compile": False, "checkpoint_every_s": 0.2}
    | {"optimizer": "adamw", "ema_decay": 0.9},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With damaged files among the pictures, a teacher and a recipe."""
    folder = tmp_path_factory.mktemp("streamed")
    damage(write_jpegs(folder / "jpegs", each=20))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    (folder / "teacher.yaml").write_text(
        json.dumps({"data": DATA | {"image_size": 54}, "student": TEACHER, "train": {"epochs": 1, "lr": 0.01}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.warns(UserWarning, match=r"left out: .*jpegs/train/cat/0\.jpg"):
            assert main(["train", "teacher.yaml", "--output=teacher", "--quiet"]) == 0
    return folder


def test_killed_and_gone_on_the_student_is_exported_and_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("distill", "recipe.yaml", "--output=run", "--resume")
    first, second = start_ranks(command, folder)
    first.wait_until((folder / "run" / "last" / "checkpoint.safetensors").exists)
    second.send(signal.SIGKILL)
    assert first.wait() != 0
    assert "disk-kd: rank 0 lost the others" in first.said()
    begun = len(lines(folder / "run"))
    commands = start_ranks(command, folder)
    assert [each.wait() for each in commands] == [0, 0], "".join(each.said() for each in commands)
    assert 0 < begun < len(lines(folder / "run"))

    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["evaluate", "run", "--split=validation", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert measured["samples"] == summary["validation"]["samples"] == 40
    assert measured["top1"] == pytest.approx(summary["validation"]["top1"])
    assert main(["export", "run", "--format=timm", "--output=exported"]) == 0
    model = timm.create_model("test_resnet", num_classes=2, checkpoint_path="exported/model.safetensors").eval()
    assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()

    # The folder is a teacher by timm's own name, whose labels are compared.
    teacher = ["--teacher.name=local-dir:exported", "--teacher.pretrained=true", "--student.name=cifar_resnet10_xxs"]
    data = [f"--data.{name}={value}" for name, value in (DATA | {"image_size": 16}).items()]
    command = ("distill", *teacher, *data, "--train.epochs=1", "--train.batch_size=8", "--quiet")
    with pytest.warns(UserWarning, match="left out"):
        assert main([*command, "--output=from-folder", "--resume=auto"]) == 0
    described = (folder / "exported" / "config.json").read_text()
    (folder / "exported" / "config.json").write_text(described.replace('"cat"', '"puma"'))
    capsys.readouterr()
    with pytest.warns(UserWarning, match="left out"):
        assert main([*command, "--output=never"]) == 2
    assert "label 0 is 'cat' in the dataset and 'puma' for the pretrained teacher" in capsys.readouterr().err


def test_a_damaged_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["recipe.yaml", "--data.skip_unreadable=false", "--output=refused", "--quiet"]
    assert main(["distill", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be read as an image" in said
    assert "replace it, or give data.skip_unreadable=true" in said


def test_stored_outputs_are_those_of_the_teacher_at_each_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    once = ["recipe.yaml", "--train.epochs=2", "--data.mix.mixup=0", "--data.mix.cutmix=0", "--data.views=2", "--quiet"]
    once += ["--data.workers=0"]
    runs = {"stored": "true", "online": "false"}
    for name, store in runs.items():
        with pytest.warns(UserWarning, match="left out"):
            assert main(["distill", *once, f"--teacher.store={store}", f"--output={name}"]) == 0
    stored, online = (lines(folder / name) for name in runs)
    assert len(stored) == len(online) > 4
    for line, other in zip(stored, online, strict=True):
        assert line.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-2)  # stored in half precision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method=dkd"], "dkd needs one label for each image, but data.mix mixes labels"),
        (["--teacher.store=true"], "data.mix makes new images at each step, whose teacher outputs cannot be stored"),
        (["--data.timm.hflip=2"], r"data.timm.hflip is a chance in [0, 1], got 2.0"),
        (["--data.timm.flip=2"], "unknown option data.timm.flip"),
        (["--teacher.image_size=32"], "VisionTransformer does not take an image of shape (3, 32, 32) (C, H, W): Input"),
        (["--data.workers=-1"], "data.workers must be at least 0 or null, not -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    method = ["--method=disk"] if options[0].startswith("--method") else []
    recipe = json.loads((folder / "recipe.yaml").read_text())
    if method:
        del recipe["method"]
        (folder / "plain.yaml").write_text(json.dumps(recipe))
    name = "plain.yaml" if method else "recipe.yaml"
    assert main(["distill", name, *options, "--output=never", "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "never").exists()
