"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from disk_kd.cli import COMMANDS, main
from disk_kd.config import list_recipes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {"loader": [(torch.randn(4, 3, 32, 32), torch.arange(4))] * 2}
    exec(example, names)
    assert names["task"].step.item() == 2


def test_commands_and_recipes_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"^    disk-kd ([\w-]+)", README, flags=re.MULTILINE))
    assert commands
    assert commands <= set(COMMANDS)
    named = set(re.findall(r"(?<!results/)\b((?:cifar100|cifar100-16px|digits)/[\w/-]+\w)", README))
    assert named
    assert named <= set(list_recipes())
    assert main(["--help"]) == 0
    assert set(re.findall(r"^  ([\w-]+) ", capsys.readouterr().out, flags=re.MULTILINE)) == set(COMMANDS)
