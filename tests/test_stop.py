"""Commands that are asked to stop: at once, with all files whole, and the same command goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from disk_kd.cli import main
from disk_kd.training import STOPPED
from processes import LIMIT_S, Command


def stopped(arguments: Sequence[str], ready: Callable[[], object], number: signal.Signals) -> tuple[int, str]:
    """Exit code and messages of a command that gets a signal, it alone, when it is ready."""
    command = Command(arguments)
    command.wait_until(ready)
    children = command.send(number)
    code = command.wait()
    assert not psutil.wait_procs(children, timeout=LIMIT_S)[1]
    return code, command.errors


def test_a_store_that_is_made_goes_on_after_a_signal(tiny: Sequence[str], tmp_path: Path) -> None:
    assert main(["train", *tiny, f"--output={tmp_path / 'teacher'}"]) == 0
    command = ["store-teacher", *tiny, "--method=kd", "--data.views=60", f"--runs={tmp_path}"]
    command += ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={tmp_path / 'teacher'}"]
    code, said = stopped(command, lambda: len(list(tmp_path.rglob("logits*"))) > 3, signal.SIGTERM)
    assert (code, said.count("\n")) == (STOPPED, 1)
    assert "asked to stop; go on with" in said
    before = len(list(tmp_path.rglob("logits*")))
    assert before < 60
    assert main(command) == 0
    assert len(list(tmp_path.rglob("logits*"))) >= 60


def test_an_interrupted_comparison_ends_and_its_run_is_saved(tmp_path: Path) -> None:
    command = ["compare", "digits/ce", "--seeds=1", f"--runs={tmp_path}"]
    long = ["--train.epochs=100000", "--train.checkpoint_every_s=1000", "--train.log_every=1"]
    long += ["--train.compile=false", "--student.name=cifar_resnet10_xxxs"]
    run = tmp_path / "digits/ce/seed0"

    def logged() -> int:
        return (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, STOPPED)):
        before = logged()
        ended, said = stopped([*command, *long], lambda before=before: logged() > before + 1000, number)  # type: ignore[misc]
        assert ended == code, said
        assert "the same command again" in said
        assert (run / "last" / "checkpoint.safetensors").exists()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "train"]
        assert steps == sorted(set(steps))
