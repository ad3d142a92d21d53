"""The command as a process: help at once, errors of any kind in one line, a reader that goes away."""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from rich.console import Console

from disk_kd import cli
from disk_kd.cli import UNREAD, main
from disk_kd.commands.parsing import joined
from disk_kd.commands.runs import store_table
from disk_kd.training import STOPPED
from disk_kd_command import COMMANDS, usage

LIMIT_S = 240


def test_the_list_of_commands_is_that_of_their_functions() -> None:
    told = {name: (command.__doc__ or "").splitlines()[0] for name, command in cli.COMMANDS.items()}
    assert told == COMMANDS
    assert "--debug" in usage()


def test_help_imports_nothing_that_takes_long() -> None:
    code = "import sys; sys.argv = ['disk-kd', '--help']; import disk_kd_command; disk_kd_command.main();"
    code += "sys.exit('torch' in sys.modules or 'disk_kd' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_ctrl_c_while_it_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import disk_kd_command

    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["disk-kd", "train"])
    monkeypatch.setattr(cli, "main", interrupted)
    assert disk_kd_command.main() == 130
    assert capsys.readouterr().err == "disk-kd: interrupted\n"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function in the place of the command `list`."""
    return lambda function: monkeypatch.setitem(cli.COMMANDS, "list", lambda arguments: function())


def test_an_error_that_nobody_foresaw_is_one_line(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda: {}["x\ny"])
    assert main(["list"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"disk-kd: unexpected error: KeyError: .*; --debug shows the traceback .*\n", said)


def test_debug_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "train", "--train.epochs=0"], ["train", "--train.epochs=0", "--debug"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" in said
        assert said.endswith("disk-kd: train.epochs must be at least 1, not 0\n")


def test_an_output_that_is_not_utf_8_is_written(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    command(lambda: print("0.7 ± 0.1"))
    assert main(["list"]) == 0
    assert stream.buffer.getvalue() == b"0.7 ? 0.1\n"  # type: ignore[attr-defined]


def test_a_store_with_brackets_in_its_path_is_shown() -> None:
    manifest = {"facts": {"samples": 1}}
    store: Any = SimpleNamespace(
        manifest=manifest, path="[/x]", needs=["logits"], views=1, build_s=lambda: 1.0, errors=dict
    )
    store.bytes_per_sample = lambda: 20
    console = Console(file=io.StringIO(), width=100)
    console.print(store_table(store))
    assert "outputs: [/x]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_processes_that_a_command_starts_import_nothing_that_lies_here(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "random.py").write_text("raise ImportError('stray')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.delenv("PYTHONSAFEPATH")
    monkeypatch.setattr(sys, "argv", ["disk-kd", "list"])
    found = []
    command(lambda: found.append(subprocess.run([sys.executable, "-c", "import random"]).returncode))
    assert main() == 0
    assert found == [0]


def test_the_value_of_an_option_of_runs_is_no_recipe() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds")
    parser.add_argument("--quiet", action="store_true")
    given = ["--train.epochs", "1", "a.yaml", "--resume", "--train.lr", "-1", "--quiet", "b.yaml", "--seeds", "2"]
    found = joined(given, parser)
    assert found == ["--train.epochs=1", "a.yaml", "--resume", "--train.lr=-1", "--quiet", "b.yaml", "--seeds", "2"]


def started(arguments: Sequence[str]) -> subprocess.Popen[str]:
    code = "import sys; from disk_kd.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_run_whose_reader_goes_away_is_saved(tiny: Sequence[str], tmp_path: Path) -> None:
    options = [option for option in tiny if option != "--quiet"]
    options += ["--train.epochs=100000", "--train.compile=false", f"--output={tmp_path / 'run'}"]
    process = started(["train", *options])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT_S) == STOPPED
    assert re.fullmatch(r"disk-kd: asked to stop after \d+ steps; saved, go on with --resume\n", process.stderr.read())
    assert (tmp_path / "run" / "last" / "checkpoint.safetensors").exists()


def test_a_list_whose_reader_goes_away_ends_quietly(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread() -> NoReturn:
        raise BrokenPipeError

    dropped = []
    monkeypatch.setattr(cli, "drop_output", lambda: dropped.append(True))
    command(unread)
    assert main(["list"]) == UNREAD
    assert dropped


def test_a_file_that_a_thread_cannot_write_is_left_to_the_main_one(capsys: pytest.CaptureFixture[str]) -> None:
    failed: Any = SimpleNamespace(exc_type=OSError, exc_value=OSError("full"), exc_traceback=None, thread=None)
    cli._thread_failed(failed)
    assert capsys.readouterr().err == ""
