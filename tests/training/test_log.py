from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from disk_kd.training.log import Meter, MetricsLog


def test_meter_gives_means_and_begins_anew() -> None:
    meter = Meter()
    assert meter.means() == {}
    meter.add({"loss": torch.tensor(1.0)})
    meter.add({"loss": torch.tensor(3.0)})
    assert meter.means() == {"loss": 2.0}
    assert meter.means() == {}


def test_meter_tells_its_means_so_far() -> None:
    meter = Meter()
    assert meter.so_far() == {}
    for loss in (1.0, 3.0):
        meter.add({"loss": torch.tensor(loss)})
        assert meter.so_far() == {"loss": (1.0 + loss) / 2}
    assert meter.means() == {"loss": 2.0}


def test_meter_goes_on_from_its_state() -> None:
    whole, half, rest = Meter(), Meter(), Meter()
    for value in (0.1, 0.7):
        whole.add({"loss": torch.tensor(value)})
        half.add({"loss": torch.tensor(value)})
    rest.load_state_dict(half.state_dict(), torch.device("cpu"))
    for meter in (whole, rest):
        meter.add({"loss": torch.tensor(0.3)})
    assert whole.means() == rest.means()


def test_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.metrics("train", 1, loss=0.5)
    kept = log.sync()
    log.metrics("train", 2, loss=float("nan"))
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["loss"] is None
    log = MetricsLog(tmp_path, keep_bytes=kept)
    log.metrics("train", 2, loss=0.25)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [0.5, pytest.approx(0.25)]
