"""A method in a file of the user's own, by module:Class."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from disk_kd.cli import main
from disk_kd.errors import ConfigError
from disk_kd.plugins import find_class
from disk_kd.tasks import METHODS, StudentTask

DOC = (Path(__file__).parents[1] / "docs" / "own-method.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_the_documented_methods_run(folder: Path, tiny: Sequence[str]) -> None:
    for name, code in re.findall(r"`(my_\w+\.py)`:\n\n```python\n(.*?)```", DOC, flags=re.DOTALL):
        (folder / name).write_text(code)
    assert {path.name for path in folder.iterdir()} == {"my_method.py", "my_hint.py"}
    assert main(["train", *tiny, "--output=teacher"]) == 0
    teacher = ["--teacher.weights=teacher", "--teacher.name=cifar_resnet10_xxxs"]
    command = ["distill", *tiny, *teacher, "--runs=.", "--method=my_method:MarginTask", "--method.margin=0.5"]
    assert main([*command, "--output=method"]) == 0
    last = json.loads((folder / "method" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "validation"
    hint = ["--method=kd", "--hint=my_hint:CosineHint", "--hint.weight=2.0", "--output=hint"]
    assert main(["distill", *tiny, *teacher, "--runs=.", *hint]) == 0
    lines = [json.loads(line) for line in (folder / "hint" / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("hint_loss", 0) > 0 for line in lines)


def test_an_error_of_a_users_module_names_its_line(
    folder: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    head = "from disk_kd import CETask\nclass Failing(CETask):\n"
    (folder / "failing_method.py").write_text(f"{head}    def forward(self, *given):\n        return {{}}['loss']\n")
    command = ["distill", *tiny, "--method=failing_method:Failing", "--train.compile=false"]
    assert main([*command, "--output=one"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"disk-kd: .*failing_method.py, line 4: KeyError: 'loss'; --debug shows the traceback\n", said)
    assert main([*command, "--output=two", "--debug"]) == 2
    assert 'failing_method.py", line 4, in forward' in capsys.readouterr().err


def test_what_is_not_there_is_named(folder: Path) -> None:
    (folder / "empty_module.py").write_text("Thing = int\n")
    (folder / "broken_module.py").write_text("class Task(:\n")
    (folder / "leaving_module.py").write_text("raise SystemExit('bye')\n")
    for name, message in (
        ("kdd", r"unknown method 'kdd'; give one of ce, kd, dkd, .*timm-token, or your own: my_module:MyClass"),
        ("nowhere:Task", "no method 'nowhere:Task'.*No module named 'nowhere'"),
        ("broken_module:Task", r"no method 'broken_module:Task' \(.*broken_module.py, line 1\)"),
        ("leaving_module:Task", r"no method 'leaving_module:Task' \(bye\)"),
        ("empty_module:Task", "has no attribute 'Task'"),
        ("empty_module:Thing", "must be a class that derives from StudentTask"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_class(name, METHODS, StudentTask, "method")
