from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from disk_kd.errors import CheckpointError
from disk_kd.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    channels_last = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {
        "tensors": [shared, shared[0], torch.tensor(3, dtype=torch.int64), channels_last],
        "optimizer": {
            "state": {0: {"momentum": torch.ones(2, dtype=torch.bfloat16)}, 3: {}},
            "groups": [{"lr": 0.1}],
        },
        "plain": {"none": None, "text": "a.b", "float": 0.1 + 0.2, "flag": True, "empty": {}},
    }
    save_checkpoint(tmp_path / "c.safetensors", state)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded["plain"] == state["plain"]
    assert loaded["optimizer"]["groups"] == [{"lr": 0.1}]
    assert list(loaded["optimizer"]["state"]) == [0, 3]
    assert loaded["optimizer"]["state"][0]["momentum"].dtype is torch.bfloat16
    for ours, theirs in zip(loaded["tensors"], state["tensors"], strict=True):
        assert torch.equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(path, {"step": object()})
    assert load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"weights": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(path)


def test_a_foreign_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(path)
    path.write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(path)


def test_random_states_repeat_every_generator(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    save_checkpoint(tmp_path / "r.safetensors", random_state())
    first = draw()
    assert draw() != first
    set_random_state(load_checkpoint(tmp_path / "r.safetensors"))
    assert draw() == first
