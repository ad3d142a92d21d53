"""Two processes train as one, and what stops them leaves a run that goes on; once under torchrun, the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from disk_kd import ranks
from disk_kd.cli import main
from disk_kd.errors import ConfigError
from disk_kd.training import STOPPED, StoppedError
from processes import LIMIT_S, Command, start_ranks

TINY = {"name": "test_vit", "options": {"img_size": 8, "patch_size": 4}}
"""A model without batch norms, whose statistics would be those of a rank's own images."""
RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "augment": {"crop_padding": 1, "crop_fill": 0}},
    "student": TINY,
    "teacher": {**TINY, "weights": "teacher"},
    "method": {"name": "disk", "budget": 0.2},
    "train": {"epochs": 12, "batch_size": 64, "lr": 0.01, "log_every": 1, "compile": False, "checkpoint_every_s": 0.1},
}


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "disk_kd", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def ended_on_two_ranks(folder: Path, *arguments: str) -> str:
    """What a command said that ended well on two ranks."""
    commands = start_ranks(arguments, folder)
    assert [command.wait() for command in commands] == [0, 0], "".join(command.said() for command in commands)
    return "".join(command.said() for command in commands)


def wait_for_checkpoint(path: Path, launcher: subprocess.Popen[str], newer_than: float) -> None:
    deadline = time.monotonic() + LIMIT_S
    while path.stat().st_mtime <= newer_than:
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a teacher, a recipe, and the run of it by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = json.dumps(TINY["options"])
        teacher = ["--student.name=test_vit", f"--student.options={options}", "--train.epochs=2", "--train.lr=0.01"]
        assert main(["train", *teacher, "--data.name=digits", "--output=teacher", "--quiet"]) == 0
        assert main(["distill", "recipe.yaml", "--output=one", "--quiet"]) == 0
    return folder


def test_killed_and_stopped_on_two_ranks_and_ended_on_one_a_run_is_that_of_one_process(folder: Path) -> None:
    command = ("distill", "recipe.yaml", "--output=two", "--resume")
    checkpoint = folder / "two" / "last" / "checkpoint.safetensors"
    first, second = start_ranks(command, folder)
    first.wait_until(checkpoint.exists)
    second.send(signal.SIGKILL)
    assert first.wait() != 0
    assert "disk-kd: rank 0 lost the others" in first.said()
    assert "Traceback" not in first.said()

    launcher = torchrun(folder, *command)
    wait_for_checkpoint(checkpoint, launcher, newer_than=checkpoint.stat().st_mtime)
    launcher.terminate()  # as a scheduler does; torchrun passes the signal on
    said = launcher.communicate(timeout=LIMIT_S)[0]
    assert said.count("saved, go on with --resume") == 2, said
    done = len(lines(folder / "two"))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*command, "--quiet"]) == 0
    one, two = lines(folder / "one"), lines(folder / "two")
    assert 0 < done < len(two) == len(one)
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
    # Sums in another order; over hundreds of steps their rounding grows.
    for line, other in zip(one[:20], two[:20], strict=True):
        for name in line.keys() & {"loss", "ce_loss", "scaffold_loss", "lr", "top1"}:
            assert other[name] == pytest.approx(line[name], abs=1e-5, rel=1e-5), (line["step"], name)
    summaries = [json.loads((folder / run / "summary.json").read_text()) for run in ("one", "two")]
    assert summaries[0]["test"] == pytest.approx(summaries[1]["test"], abs=2.0)


def test_two_ranks_learn_by_timms_task_what_one_process_does(folder: Path) -> None:
    (folder / "timm.yaml").write_text(json.dumps({**RECIPE, "method": {"name": "timm-logits"}}))
    command = ["distill", "timm.yaml", "--train.epochs=2"]
    ended_on_two_ranks(folder, *command, "--output=timm-two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*command, "--output=timm-one", "--quiet"]) == 0
    one, two = (load_file(folder / run / "student.safetensors") for run in ("timm-one", "timm-two"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name


def test_two_ranks_end_and_write_once(folder: Path) -> None:
    arguments = ["--train.epochs=2", "--train.accumulate=2", "--train.ema_decay=0.9"]
    said = ended_on_two_ranks(folder, "distill", "recipe.yaml", *arguments, "--output=accumulated")
    assert said.count("Run directory") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["distill", "recipe.yaml", *arguments, "--output=accumulated-one", "--quiet"]) == 0
    one, two = (json.loads((folder / run / "summary.json").read_text()) for run in ("accumulated-one", "accumulated"))
    assert two["validation"]["samples"] == one["validation"]["samples"]
    assert two["end"] == pytest.approx(one["end"], abs=1e-3)


def test_what_two_ranks_measure_is_the_student_that_is_saved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Batch norms keep statistics of each rank's own images; the main rank's are saved."""
    command = ["train", "--data.name=digits", "--student.name=cifar_resnet10_xxxs", "--train.batch_size=8"]
    command += ["--data.validation=0.0", "--train.epochs=1", "--train.ema_decay=0.9"]
    ended_on_two_ranks(folder, *command, "--output=norms", "--quiet")
    capsys.readouterr()
    assert main(["evaluate", str(folder / "norms"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    summary = json.loads((folder / "norms" / "summary.json").read_text())
    for name in ("top1", "nll"):
        assert evaluated[name] == pytest.approx(summary["test"][name], rel=1e-5)


def test_two_ranks_share_the_views_of_a_stored_teacher(folder: Path) -> None:
    command = ["distill", "recipe.yaml", "--teacher.store=true", "--data.views=3", "--train.epochs=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["store-teacher", "recipe.yaml", "--data.views=1", "--runs=shared", "--quiet"]) == 0
        assert main([*command, "--runs=alone", "--output=alone/run", "--quiet"]) == 0
    (store,) = (folder / "shared" / "teacher-store").iterdir()
    with FileLock(store / "lock"):  # no rank can end a view before the other has begun one
        commands = start_ranks([*command, "--runs=shared", "--output=shared/run"], folder)
        commands[0].wait_until((store / "view2.lock").exists)
    assert [each.wait() for each in commands] == [0, 0], commands[0].said()
    said = "".join(each.said() for each in commands)
    assert said.count("Stored teacher outputs") == 1
    views = json.loads((store / "manifest.json").read_text())["views"]
    assert len({views[view]["by"] for view in "012"}) == 3  # this process, and each rank
    one, two = lines(folder / "alone" / "run"), lines(folder / "shared" / "run")
    losses = [[line["loss"] for line in run if line["kind"] == "train"] for run in (one, two)]
    assert len(losses[0]) > 20
    assert losses[1] == pytest.approx(losses[0], abs=1e-5, rel=1e-5)


def test_an_error_that_every_rank_meets_is_told_once(folder: Path) -> None:
    weights = load_file(folder / "teacher" / "student.safetensors")
    broken = {name: torch.full_like(value, torch.inf) for name, value in weights.items()}
    save_file(broken, folder / "broken.safetensors")
    options = ["--teacher.weights=broken.safetensors", "--data.views=2", "--runs=broken"]
    for command in (["distill", "recipe.yaml", "--teacher.store=true"], ["store-teacher", "recipe.yaml"]):
        commands = start_ranks([*command, *options], folder)
        assert 0 not in [each.wait() for each in commands]
        said = "".join(each.said() for each in commands)
        told = "disk-kd: the teacher's logits are not finite for sample"
        assert said.count(told) == said.count("disk-kd: ") == 1, said


def test_a_signal_saves_the_run_of_one_process(folder: Path) -> None:
    command = Command(["distill", "recipe.yaml", "--output=signalled"], folder)
    command.wait_until((folder / "signalled" / "last" / "checkpoint.safetensors").exists)
    command.send(signal.SIGUSR1)
    assert command.wait() == STOPPED
    assert "asked to stop after" in command.errors
    assert not (folder / "signalled" / "summary.json").exists()


def test_alone_there_is_nothing_to_wait_for() -> None:
    values = torch.tensor([1.0, 2.0])
    assert ranks.size() == 1
    assert ranks.is_main()
    assert ranks.mean(values) is values
    assert ranks.total(values) is values
    assert ranks.gather("x") == ["x"]
    assert ranks.from_main(lambda: 3) == 3
    assert ranks.posted("x") is None
    assert issubclass(StoppedError, RuntimeError)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, None),
        ({"RANK": ""}, None),
        ({"WORLD_SIZE": ""}, None),
        ({"WORLD_SIZE": "4"}, "the environment has WORLD_SIZE=4 and no RANK; start with torchrun, or unset"),
        ({"WORLD_SIZE": "two"}, "the environment has WORLD_SIZE=two, no number; unset it, or start with torchrun"),
    ],
)
def test_what_a_launcher_left_in_the_environment(
    variables: dict[str, str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = nullcontext() if message is None else pytest.raises(ConfigError, match=message)
    with refused, ranks.joined(torch.device("cpu")):
        assert ranks.is_main()


def test_batches_that_do_not_divide_are_refused(folder: Path) -> None:
    commands = start_ranks(["distill", "recipe.yaml", "--train.batch_size=33", "--output=odd"], folder)
    assert [command.wait() for command in commands] == [2, 2]
    said = "".join(command.said() for command in commands)
    assert "batch_size 33 must be divisible by the number of processes, 2" in said
    assert not (folder / "odd" / "summary.json").exists()
    assert ConfigError.__name__ not in said
