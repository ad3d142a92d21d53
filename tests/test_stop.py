"""Commands that are asked to stop: at once, with all files whole, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from disk_kd.cli import main
from disk_kd.training import STOPPED

LIMIT_S = 120


def stopped(command: Sequence[str], ready: Callable[[], object], number: signal.Signals) -> tuple[int, str]:
    """Exit code and messages of a command that gets a signal, it alone, when it is ready."""
    # A shell lets what it starts in the background ignore interrupts, tests included.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import runpy, sys;"
    code += "runpy.run_module('disk_kd', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT_S)[1]
    assert not psutil.wait_procs(children, timeout=LIMIT_S)[1]
    return process.returncode, said


def test_a_store_that_is_made_goes_on_after_a_signal(tiny: Sequence[str], tmp_path: Path) -> None:
    assert main(["train", *tiny, f"--output={tmp_path / 'teacher'}"]) == 0
    command = ["store-teacher", *tiny, "--method=kd", "--data.views=300", f"--runs={tmp_path}"]
    command += ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={tmp_path / 'teacher'}"]
    code, said = stopped(command, lambda: len(list(tmp_path.rglob("logits*"))) > 3, signal.SIGTERM)
    assert (code, said.count("\n")) == (STOPPED, 1)
    assert "asked to stop; go on with" in said
    before = len(list(tmp_path.rglob("logits*")))
    assert before < 300
    assert main(command) == 0
    assert len(list(tmp_path.rglob("logits*"))) >= 300


def test_an_interrupted_comparison_ends_and_its_run_is_saved(tmp_path: Path) -> None:
    command = ["compare", "digits/ce", "--seeds=1", f"--runs={tmp_path}"]
    long = ["--train.epochs=100000", "--train.checkpoint_every_s=1000", "--train.log_every=1"]
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
