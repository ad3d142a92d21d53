"""Commands that are killed while they write go on as if nothing had been, and leave nothing behind.

Some points of each; `tests/crash_walk.py` walks all.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crash_walk import contents
from disk_kd.cli import main
from processes import Command

SMALL = [
    *("--data.limit_train=24", "--student.name=cifar_resnet10_xxxs", "--train.epochs=1", "--train.batch_size=12"),
    *("--train.warmup_epochs=0", "--train.compile=false", "--quiet"),
]
STORE = ["--teacher.store=true", "--method=kd", "--views=1", "--runs=runs"]
COMMANDS: dict[str, list[str]] = {
    "train": ["train", *SMALL, "--output=run"],
    "store": ["store-teacher", *SMALL, "--teacher.name=cifar_resnet10_xxxs", "--teacher.weights=teacher", *STORE],
    "export": ["export", "teacher", "--output=student.safetensors", "--certify=false"],
    "timm": ["export", "teacher", "--format=timm", "--output=student", "--certify=false"],
}
AGAIN = {"train": ["--resume"], "export": ["--overwrite"], "timm": ["--overwrite"]}


def ended(arguments: Sequence[str], before: str | None = None) -> int:
    """How a process ends that does a command; it kills itself before the change of files that is named."""

    def kill_before(event: str, given: tuple[Any, ...]) -> None:
        if event.startswith(("os.", "shutil.")) and before == f"{event} {_name(given, event == 'os.rename')}":
            os.kill(os.getpid(), signal.SIGKILL)

    return Command(arguments, before=lambda: sys.addaudithook(kill_before)).wait()


def _name(given: tuple[Any, ...], is_rename: bool) -> str:
    """Of the file that is changed, or of that in whose place another is put; without the number of the process."""
    return Path(str(given[is_rename])).name.replace(f".{os.getpid()}.", ".N.") if given else ""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher in it."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *SMALL, "--output=teacher"]) == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the folder holds after each command."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, command in COMMANDS.items():
            folder = shutil.copytree(begun, tmp_path_factory.mktemp(name) / "folder")
            patch.chdir(folder)
            assert ended(command) == 0
            found[name] = contents(folder)
    return found


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("train", "os.rename config.yaml"),
        ("train", "os.rename checkpoint.safetensors"),
        ("store", "os.remove errors.view0.npy.part"),
        ("store", "os.rename logits.view0.npy"),
        ("export", "shutil.rmtree student.safetensors.N.tmp"),
        ("timm", "os.rename student"),
    ],
)
def test_a_command_that_is_killed_goes_on(
    name: str,
    before: str,
    begun: Path,
    undisturbed: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(begun, tmp_path / "folder")
    monkeypatch.chdir(folder)
    assert ended(COMMANDS[name], before) == -signal.SIGKILL
    assert ended([*COMMANDS[name], *AGAIN.get(name, [])]) == 0
    assert contents(folder) == undisturbed[name]
