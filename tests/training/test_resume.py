"""A run that was killed and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from disk_kd.cli import main
from disk_kd.training.tracking import RUN_ID
from processes import Command

METHODS = {
    "ce": ["--train.ema_decay=0.9", "--train.channels_last=true"],
    "kd": ["--method.temperature=2"],
    "disk": ["--data.views=2", "--teacher.store=true"],
    "network": ["--method.helper=teacher-map", "--method.helper_warmup_epochs=1"],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    assert main(["train", *tiny, "--train.epochs=1", f"--output={run}"]) == 0
    return run


def command(case: str, teacher: Path, tiny: Sequence[str], output: Path) -> list[str]:
    method = "disk" if case == "network" else case
    learns = [] if case == "ce" else ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}"]
    own = [f"--method={method}", *METHODS[case], *learns, f"--output={output}", f"--runs={output.parent}"]
    return ["distill", *tiny, *own, "--train.epochs=3", "--train.checkpoint_every_s=0", "--data.augment.crop_padding=1"]


def outcome(run: Path) -> dict[str, object]:
    weights = load_file(run / "student.safetensors")
    return {
        "metrics": (run / "metrics.jsonl").read_bytes(),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        "best": (run / "best" / "student.safetensors").read_bytes(),
    }


@pytest.mark.parametrize("case", METHODS)
def test_killed_in_mid_pass_and_resumed(case: str, teacher: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(command(case, teacher, tiny, whole)) == 0

    arguments = command(case, teacher, tiny, broken)
    process, log = Command(arguments), broken / "metrics.jsonl"
    process.wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 4)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (broken / "student.safetensors").exists()

    assert main([*arguments, "--resume"]) == 0
    assert outcome(broken) == outcome(whole)


def test_resume_without_a_checkpoint_begins_anew(tiny: Sequence[str], tmp_path: Path) -> None:
    whole, stub = tmp_path / "whole", tmp_path / "stub"
    arguments = ["train", *tiny, "--train.checkpoint_every_s=0"]
    assert main([*arguments, f"--output={whole}"]) == 0
    assert main([*arguments, f"--output={stub}"]) == 0
    for name in ("student.safetensors", "summary.json", "last/checkpoint.safetensors"):
        (stub / name).unlink()
    assert main([*arguments, f"--output={stub}", "--resume"]) == 0
    assert outcome(stub) == outcome(whole)


def test_a_run_that_died_before_its_first_file_can_be_begun_again(tiny: Sequence[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "last").mkdir(parents=True)
    (run / "last" / "lock").touch()
    assert main(["train", *tiny, f"--output={run}"]) == 0
    assert (run / "summary.json").exists()


def test_a_run_killed_while_it_wrote_a_file_goes_on_without_its_remains(tiny: Sequence[str], tmp_path: Path) -> None:
    run, dead = tmp_path / "run", subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (run / "last").mkdir(parents=True)
    (run / f"config.yaml.{dead.pid}.tmp").touch()
    (run / "last" / f"checkpoint.safetensors.{dead.pid}.tmp").touch()
    (run / f"{RUN_ID}.{dead.pid}.tmp").touch()  # of a logger that the resumed run has not
    assert main(["train", *tiny, f"--output={run}", "--resume"]) == 0
    assert not list(run.rglob("*.tmp"))


def write_photos(folder: Path, count: int) -> None:
    """A training split of two classes."""
    for label, name in enumerate(("cat", "dog")):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            level = np.random.default_rng([label, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(level).save(folder / "train" / name / f"{number}.png")


def test_a_run_does_not_go_on_with_other_images(
    tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = tmp_path / "run", tmp_path / "photos"
    write_photos(photos, 20)
    data = ["--data.name=folder", f"--data.root={photos}", "--data.image_size=8"]
    arguments = ["train", *tiny, *data, f"--output={run}", "--train.batch_size=8", "--resume"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    write_photos(photos, 21)
    message = f"the training and validation images changed since {run} was started; restore them, or start again"
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    (run / "student.safetensors").unlink()  # so that the run is not finished
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_finished_run_whose_images_are_gone_is_reused(tiny: Sequence[str], tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 20)
    data = ["--data.name=folder", f"--data.root={tmp_path / 'photos'}", "--data.image_size=8"]
    arguments = ["train", *tiny, *data, f"--output={tmp_path / 'run'}", "--train.batch_size=8", "--resume"]
    assert main(arguments) == 0
    shutil.rmtree(tmp_path / "photos")
    assert main(arguments) == 0


def test_a_finished_run_resumed_is_left_alone(tiny: Sequence[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, f"--output={run}"]) == 0
    before = outcome(run)
    assert main(["distill", str(run), "--resume", "--quiet"]) == 0
    assert outcome(run) == before


def test_a_finished_run_that_lost_its_weights_gets_them_back(tiny: Sequence[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", *tiny, f"--output={run}", "--resume"]
    assert main(arguments) == 0
    before = outcome(run)
    (run / "student.safetensors").unlink()
    assert main(arguments) == 0
    assert outcome(run) == before


def test_damaged_files_of_a_run_are_named(
    tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["train", *tiny, f"--output={run}", "--resume"]
    assert main(arguments) == 0
    for name, text, message in (
        ("summary.json", "{", "summary.json is damaged (it is no mapping); delete it, and --resume writes it again"),
        ("config.yaml", "- 3", "config.yaml must be a mapping of options, not list"),
    ):
        whole = (run / name).read_bytes()
        (run / name).write_text(text)
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        for command in ("report", "export") if name == "summary.json" else ():
            assert main([command, str(run)]) == 2
            assert message in capsys.readouterr().err
        (run / name).write_bytes(whole)
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_bytes(b"")
    assert main(arguments) == 2
    assert "metrics.jsonl has lost lines since the checkpoint; restore it" in capsys.readouterr().err
