"""`disk-kd toy` from its options to its files; mistakes are one line and exit code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from disk_kd.cli import main
from disk_kd.errors import ConfigError, RunError
from disk_kd.toy import gaussians, intervals, run_toy

FILES = ("result.json", "surfaces.json", "picture.png", "picture.svg")


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and problems with coarse pictures and few, cheap losses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intervals, "_SIDE", 9)
    monkeypatch.setattr(intervals, "ROWS", (intervals.ROWS[0], intervals.ROWS[2], *intervals.ROWS[-2:]))
    monkeypatch.setattr(intervals, "BOUNDS", (0.1,))
    monkeypatch.setattr(gaussians, "_SIDE", 9)
    monkeypatch.setattr(gaussians, "HIDDEN", (1, 2))
    monkeypatch.setattr(gaussians, "ROWS", (gaussians.ROWS[0], gaussians.ROWS[2], gaussians.ROWS[-1]))
    return tmp_path


@pytest.mark.parametrize(
    ("problem", "keys"),
    [("intervals", {"teacher_accuracy", "forms", "bounds"}), ("gaussians", {"teacher_accuracy", "students"})],
)
def test_it_writes_what_is_documented_and_the_same_again(
    problem: str, keys: set[str], short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["toy", problem, "--starts", "4", "--seed", "3"]) == 0
    folder = short / "runs" / f"toy-{problem}"
    assert f"Picture and numbers: runs/toy-{problem}" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == set(FILES)
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {"problem", "starts", "seed", "torch"} | keys
    assert (result["problem"], result["starts"], result["seed"]) == (problem, 4, 3)
    assert result["teacher_accuracy"] > 0.97
    rows = result["forms"] + result["bounds"] if problem == "intervals" else result["students"][1]["forms"]
    for row in rows:
        ended = sum(minimum["starts"] for minimum in row["minima"]) + row.get("plateau_starts", 0)
        assert ended == 4
        assert 0.3 < row["mean_accuracy"] <= 1
    surfaces = json.loads((folder / "surfaces.json").read_text())
    for row in result["forms"] if problem == "intervals" else rows[:2]:
        assert [len(line) for line in surfaces[row["title"]]] == [9] * 9
    assert main(["toy", problem, "--starts", "4", "--seed", "3", "--output", "again"]) == 0
    for name in FILES:
        assert (short / "again" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: problem"),
        (["circles"], "invalid choice: 'circles'"),
        (["intervals", "--starts", "0"], "must be from 1 to 1,000,000, not 0"),
        (["intervals", "--starts", "2"], "starts must be at least 3, got 2; try 200"),
        (["gaussians", "--starts", "many"], "must be a whole number, not 'many'"),
        (["gaussians", "--seed", "-1"], "seed must be from 0 to 2\\*\\*63 - 1, got -1; try 0"),
        (["gaussians", "--seed", str(2**63)], "seed must be from 0"),
        (["gaussians", "--sed", "1"], "unknown option --sed; nearest: seed"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toy", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot make the folder .*file.*; give another with --output"):
        run_toy("intervals", starts=None, seed=0, output=tmp_path / "file", console=Console(quiet=True))


def test_a_wrong_problem_names_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="unknown toy problem 'interval'; nearest: intervals"):
        run_toy("interval", starts=None, seed=0, output=None, console=Console(quiet=True))
