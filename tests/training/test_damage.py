"""Files of a run that were damaged or edited are named in one line, with exit code 2, as the run goes on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from disk_kd.cli import main
from disk_kd.report.reading import Run
from disk_kd.training.checkpoint import counted, load_checkpoint, save_checkpoint

CHECKPOINT = Path("last") / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def run(tiny: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last steps are still to be done."""
    run = tmp_path_factory.mktemp("damage") / "run"
    assert main(arguments(run, tiny)) == 0
    for name in ("student.safetensors", "summary.json"):
        (run / name).unlink()
    return run


def arguments(run: Path, tiny: Sequence[str]) -> list[str]:
    own = [f"--output={run}", f"--runs={run.parent}", "--train.epochs=1", "--train.compile=false", "--resume"]
    return ["train", *tiny, *own, "--data.validation=0"]


@pytest.fixture
def broken(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(run.parent), str(tmp_path)))
    return tmp_path / "run"


def changed(state: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    part = state
    for key in path[:-1]:
        part = part[key]
    change(part, path[-1])
    return state


def put(value: Any) -> Callable[[Any, Any], None]:
    return lambda part, key: part.__setitem__(key, value)


def drop(part: Any, key: Any) -> None:
    del part[key]


def reshape(part: Any, key: Any) -> None:
    part[key] = part[key].reshape(-1)[:1].clone() if part[key].numel() > 1 else part[key].repeat(3)


def spoil(part: Any, key: Any) -> None:
    part[key] = torch.full_like(part[key], math.nan)


def test_a_checkpoint_that_was_edited_is_told(
    broken: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken / CHECKPOINT
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    name = next(name for name in tensors if name.endswith("conv1.weight"))
    edits: list[tuple[dict[str, torch.Tensor], dict[str, str]]] = [
        ({**tensors, name: tensors[name] + 1}, about),
        ({**tensors, "more": torch.zeros(1)}, about),
        ({key: value for key, value in tensors.items() if key != name}, about),
        (tensors, {**about, "state": about["state"].replace('"student_epochs": 1', '"student_epochs": 0')}),
        (tensors, {**about, "state": "[]"}),
    ]
    for contents, metadata in edits:
        save_file(contents, path, metadata)
        assert main(arguments(broken, tiny)) == 2
        assert "is not a complete checkpoint of disk-kd" in capsys.readouterr().err


EDITS: dict[str, Any] = {
    "task": {},
    "optimizers": [],
    "updates": {"student": -1},
    "position": {"epochs": 9},
    "meter": {"names": 3},
    "random": None,
    "log_bytes": -1,
}
"""A wrong value of each part of a checkpoint."""


def test_no_part_of_a_checkpoint_may_be_of_another_kind(
    broken: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(broken / CHECKPOINT)
    assert state.keys() == EDITS.keys() | {"scaler"}  # which is of fp16 alone
    wrong: list[Any] = []
    for name, value in EDITS.items():
        # Written anew it has a digest of its own, so that it is refused for what it holds.
        save_checkpoint(broken / CHECKPOINT, {**state, name: value})
        code = main(arguments(broken, tiny))
        said = capsys.readouterr().err
        if code != 2 or "checkpoint" not in said or said.count("\n") != 1:
            wrong.append((name, code, said))
    assert not wrong


@pytest.mark.parametrize("change", [drop, reshape, spoil], ids=["dropped", "reshaped", "not finite"])
def test_no_tensor_of_a_checkpoint_may_be_another(
    change: Callable[[Any, Any], None], broken: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (("task", "trainable_module.conv1.weight"), ("optimizers", "student", "state", 0, "momentum_buffer")):
        state = load_checkpoint(broken / CHECKPOINT)
        save_checkpoint(broken / "other", changed(state, path, change))
        whole = (broken / CHECKPOINT).read_bytes()
        (broken / "other").replace(broken / CHECKPOINT)
        assert main(arguments(broken, tiny)) == 2, path
        assert "checkpoint" in capsys.readouterr().err
        (broken / CHECKPOINT).write_bytes(whole)


@pytest.mark.parametrize("value", [-1, 4, 0.5, "1", None, math.nan])
def test_a_count_is_a_whole_number_in_its_range(value: Any) -> None:
    with pytest.raises(ValueError, match="expected from 0 to 3"):
        counted(value, most=3)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"training": 3}', "\x00"])
def test_other_fingerprints_of_the_images_are_told(
    content: str, broken: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (broken / "data.json").write_text(content)
    assert main(arguments(broken, tiny)) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", "3\n", '{"kind": "train"}\n'])
def test_a_damaged_log_is_told(
    content: str, broken: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = broken / "metrics.jsonl"
    log.write_text(content.ljust(log.stat().st_size))
    assert main(arguments(broken, tiny)) == 2
    assert "metrics.jsonl is damaged" in capsys.readouterr().err
    assert all(line["kind"] for line in Run.read(broken).lines), "a report leaves out what is no line of a log"
