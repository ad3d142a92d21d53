"""The end of a run, as its summary holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disk_kd.config import RunConfig
from disk_kd.summary import last_metrics


def test_the_end_of_a_run_is_its_last_student_pass(tmp_path: Path) -> None:
    train = {"kind": "train", "phase": "student", "lr": 0.1}
    lines = [
        train | {"step": 10, "epoch": 0, "price": 5.0, "budget_used": 9.0, "own": 1.0},
        train | {"step": 20, "epoch": 1, "price": 2.0, "budget_used": 0.0, "own": None},
        {"kind": "validation", "step": 20, "top1": 50.0},
        train | {"step": 26, "epoch": 1, "lr": 0.2, "price": 1.0, "budget_used": 1.6, "own": None, "new": 3.0},
        train | {"step": 36, "epoch": 2, "phase": "helper", "price": 7.0, "budget_used": 8.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    end = last_metrics(tmp_path, RunConfig.from_tree({"method": "disk"}))
    assert end["budget_used"] == pytest.approx(1.6 * 6 / 16)
    assert (end["price"], end["lr"], end["step"], end["own"], end["new"]) == (1.0, 0.2, 26, None, 3.0)
