"""What commands print: a bar on a terminal, plain lines, JSON lines, or next to nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from disk_kd.cli import main
from disk_kd.tasks import DiSKTask
from disk_kd.training import STOPPED, Display, JsonConsole, loop
from disk_kd.training import display as module

TRAIN = {
    "kind": "train",
    "step": 12,
    "phase": "student",
    "epoch": 1,
    "lr": 0.1,
    "loss": 1.25,
    "ce_loss": 2.5,
    "scaffold_loss": 1.0,
    "budget": 0.01,
    "budget_used": 0.0125,
    "price": 0.5,
    "top1": 61.25,
}
TIMING = {"kind": "timing", "step": 12, "train_s": 6.0, "images_per_s": 1234.4}
VALIDATION = {"kind": "validation", "step": 20, "student_epochs": 2, "top1": 70.5, "nll": 0.8125}


@pytest.fixture(scope="module")
def talking(tiny: Sequence[str]) -> list[str]:
    """The options of a tiny run that is not quiet."""
    return [option for option in tiny if option != "--quiet"]


def shown(console: Console, *lines: dict[str, object]) -> None:
    """A display of 40 steps in 4 epochs, of which 12 are done."""
    with Display(40, title="runs/[x]/seed0", console=console, epochs=4, quantities=DiSKTask.quantities({})) as display:
        for done in range(1, 13):
            display.step(done)
        for line in lines:
            display.record(line)


def test_a_terminal_shows_pass_step_rate_losses_budget_and_time_left() -> None:
    file = io.StringIO()
    shown(Console(file=file, force_terminal=True, width=120, color_system=None), TRAIN, TIMING)
    text = file.getvalue()
    assert re.search(r"runs/\[x\]/seed0 +━+.* 12/40 1,234 images/s \d:\d\d left", text)
    assert (
        "epoch 2/4 student  loss 1.25 (ce 2.5 scaffold 1)  budget used 0.0125 of 0.01  price 0.5  top-1 61.2%" in text
    )


def test_away_from_a_terminal_there_are_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    shown(Console(file=file, width=40), TRAIN, TIMING, VALIDATION)
    assert file.getvalue() == "runs/[x]/seed0  epoch 2  validation top-1 70.50%  nll 0.812  1,234 images/s\n"
    monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
    file = io.StringIO()
    shown(Console(file=file, width=40), TRAIN, TIMING)
    step, loss = (
        "runs/[x]/seed0  step 12/40  epoch 2/4 student  ",
        "loss 1.25 (ce 2.5 scaffold 1)  budget used 0.0125 of 0.01",
    )
    assert file.getvalue().startswith(step + loss)
    assert re.search(r"1,234 images/s  \d:\d\d left\n\Z", file.getvalue())


def test_the_first_steps_are_shown_before_the_first_line_of_the_log(
    talking: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *talking, "--train.epochs=3", "--train.log_every=50", f"--output={run}"]) == 0
    steps = re.findall(r"step (\d+)/15  epoch \d/3 student  loss", capsys.readouterr().out)
    assert steps == ["1"]  # step 10 ends an epoch, so the log has it
    logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 1 not in logged


def test_the_first_steps_after_a_resume_are_shown(
    talking: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train", *talking, "--train.log_every=50", f"--output={tmp_path / 'run'}"]
    now = loop.StopRequest.now
    monkeypatch.setattr(loop.StopRequest, "now", lambda self, steps: steps == 7)
    assert main(options) == STOPPED
    monkeypatch.setattr(loop.StopRequest, "now", now)
    capsys.readouterr()
    assert main([*options, "--resume"]) == 0
    assert re.findall(r"step (\d+)/10  epoch \d/2 student  loss", capsys.readouterr().out) == ["8"]


ON_A_TERMINAL = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("display", sys.argv[1])  # alone, because torch takes seconds
module = importlib.util.module_from_spec(spec)
sys.modules["display"] = module
spec.loader.exec_module(module)
train, timing, validation = eval(sys.argv[2])
with module.Display(93600, title="runs/cifar100/a-recipe/seed0", console=module.RunConsole(), epochs=240) as display:
    display.step(51200)
    display.record(train)
    display.record(timing)
    display._live.refresh()
    display.record(validation)
"""


@pytest.mark.parametrize("columns", [80, 60])
def test_a_narrow_terminal_breaks_no_number_and_no_unit(columns: int) -> None:
    main_side, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", ON_A_TERMINAL, module.__file__, repr((TRAIN, TIMING, VALIDATION))]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env={**environment, "TERM": "xterm"}
    )
    os.close(terminal)
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while part := os.read(main_side, 65536):
            written += part
    assert process.wait() == 0
    os.close(main_side)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= columns
    assert any(re.search(r" 51,200/93,600 1,234 images/s \d+:\d\d left$", line) for line in lines), lines
    assert "epoch 2  validation top-1 70.50%  nll 0.812" in [line.rstrip() for line in lines]


def test_a_quiet_console_shows_nothing() -> None:
    file = io.StringIO()
    shown(Console(file=file, force_terminal=True, quiet=True), TRAIN, TIMING, VALIDATION)
    assert file.getvalue() == ""


@pytest.mark.parametrize(("first", "last", "left"), [(1, 5, "4:10"), (26, 28, "0:33")])
def test_time_left_is_of_the_steps_that_this_process_did(
    first: int, last: int, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run did not do the steps before its first: 3 steps in 50 s, 2 to go."""
    now = iter([0.0, 0.0, *[50.0] * 20])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
    file = io.StringIO()
    with Display(30, title="run", console=Console(file=file), epochs=3) as display:
        display.step(first)
        display.step(last)
        display.record(TRAIN)
        display.record(TIMING)
    assert f"  {left} left" in file.getvalue()


def test_json_lines_have_no_numbers_that_json_has_not() -> None:
    file = io.StringIO()
    console = JsonConsole(file)
    console.event("end", summary={"nll": float("nan"), "list": [float("inf"), 1]})
    console.print("one\n\ntwo [bold]words[/bold] " + "long " * 100, soft_wrap=True)
    end, one, two = map(json.loads, file.getvalue().splitlines())
    assert end == {"kind": "end", "summary": {"nll": None, "list": [None, 1]}}
    assert one == {"kind": "message", "text": "one"}
    assert two["text"].startswith("two words long long")


def events(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> list[dict]:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return [json.loads(line) for line in out.splitlines()]


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_json_is_the_log_between_start_and_end(
    talking: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", *talking, f"--output={tmp_path / 'run'}", "--log-json"]
    start, *middle, end = events(capsys, arguments)
    assert start == {
        "kind": "start",
        "run": str(tmp_path / "run"),
        "method": "ce",
        "hint": None,
        "student": "cifar_resnet10_xxxs",
        "teacher": None,
        "data": "digits",
        "seed": 0,
        "epochs": 2,
        "steps": 10,
        "labelled_samples": 120,
        "unlabelled_samples": 0,
    }
    logged = [line for line in middle if line["kind"] in ("train", "validation")]
    assert logged == json_lines(tmp_path / "run" / "metrics.jsonl")
    timing = [{key: value for key, value in line.items() if key != "kind"} for line in middle if line not in logged]
    assert timing == json_lines(tmp_path / "run" / "timing.jsonl")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert end == {"kind": "end", "run": str(tmp_path / "run"), "summary": summary}
    assert events(capsys, [*arguments, "--resume"]) == [end], "a finished run has nothing more to do"


def test_quiet_commands_say_where_and_no_more(
    talking: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, folder in (("train", "teacher"), ("store-teacher", "student")):
        teacher = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={tmp_path / 'teacher'}", "--views=2"]
        options = [*talking, f"--output={tmp_path / folder}", f"--runs={tmp_path / 'runs'}", "--quiet"]
        capsys.readouterr()
        assert main([command, *options, *(teacher if command == "store-teacher" else [])]) == 0
        out, error = capsys.readouterr()
        (path,) = out.splitlines()
        assert Path(path).is_dir()
        assert error == ""
    assert Path(path).parent == tmp_path / "runs" / "teacher-store"


def test_what_a_run_says_on_the_way_is_a_message(
    talking: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *talking, f"--output={tmp_path / 'teacher'}", "--quiet"]) == 0
    teacher = [
        "--teacher.name=cifar_resnet10_xxxs",
        f"--teacher.weights={tmp_path / 'teacher'}",
        "--teacher.store=true",
    ]
    options = [*talking, *teacher, "--views=2", f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'run'}"]
    said = events(capsys, ["distill", *options, "--method=kd", "--log-json"])
    assert said[0]["kind"] == "message"
    assert "Stored teacher outputs" in said[0]["text"]
    assert [line["kind"] for line in said].count("start") == 1
    ends = events(capsys, ["store-teacher", *options[:-1], "--method=kd", "--log-json"])[-1]
    assert (ends["kind"], Path(ends["store"]).parent) == ("end", tmp_path / "runs" / "teacher-store")


@pytest.mark.parametrize("command", ["train", "distill", "store-teacher", "compare", "demo"])
def test_quiet_and_a_log_are_one_too_many(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"compare": ["digits/ce"], "demo": []}.get(command, [f"--output={tmp_path / 'run'}"])
    assert main([command, *recipe, "--quiet", "--log-json"]) == 2
    assert re.fullmatch(
        r"disk-kd: --quiet prints no log and --log-json .*; give one of the two\n", capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of a comparison's runs, and the command."""
    runs = tmp_path_factory.mktemp("compared")
    options = [option for option in tiny if option.startswith(("--data", "--train"))]
    command = ["compare", "digits/ce", "digits/kd", "--baseline=digits/ce", "--seeds=2", f"--runs={runs}", *options]
    assert main([*command, "--quiet", "--report=false"]) == 0
    return runs, command


def test_a_quiet_comparison_names_its_files(
    compared: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, command = compared
    assert not (runs / "compare.html").exists(), "--report=false"
    capsys.readouterr()
    assert main([*command, "--quiet"]) == 0
    written = [str(runs / f"compare.{suffix}") for suffix in ("md", "csv", "tex", "html")]
    assert capsys.readouterr().out.splitlines() == written
    assert all(Path(path).is_file() for path in written)


def test_a_comparisons_events(compared: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    runs, command = compared
    start, *done, end = events(capsys, [*command, "--log-json", "--report=false"])
    assert start == {"kind": "start", "runs": str(runs), "rows": ["digits/ce", "digits/kd"], "seeds": 2}
    assert [line["done"] for line in done] == [1, 2, 3, 4, 5]
    for line in done:
        assert (line["kind"], line["total"]) == ("run", 5)
        assert line["summary"] == json.loads((Path(line["run"]) / "summary.json").read_text())
    assert {(line["row"], line["seed"]) for line in done} == {
        ("digits/teacher", 0),
        *((row, seed) for row in ("digits/ce", "digits/kd") for seed in (0, 1)),
    }
    assert [row["recipe"] for row in end["rows"]] == ["digits/ce", "digits/kd"]
    assert end["written"] == [str(runs / f"compare.{suffix}") for suffix in ("md", "csv", "tex")]


def test_a_run_that_failed_is_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    bad = ["--student.options={bogus: 1}", f"--runs={tmp_path / 'runs'}", "--seeds=1", "--log-json"]
    assert main(["compare", "digits/ce", *bad]) == 2
    out, error = capsys.readouterr()
    start, failed = map(json.loads, out.splitlines())
    assert (start["kind"], failed["kind"]) == ("start", "run")
    assert "bogus" in failed["failed"]
    assert error.startswith("disk-kd: no run of the comparison succeeded")


def test_tensorboard_has_the_numbers_of_the_log(talking: list[str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["train", *talking, f"--output={tmp_path / 'run'}", "--quiet"]) == 0
    board = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    losses = [line["loss"] for line in json_lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses)
    assert {"validation/top1", "timing/images_per_s"} <= set(board.Tags()["scalars"])
