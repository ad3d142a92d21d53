from __future__ import annotations

from pathlib import Path

import pytest
import torch

from disk_kd.bench import BenchSettings
from disk_kd.bench.sweeps import sweep

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "values", "last"),
    [("batch_size", [5, 50], "helper"), ("classes", [5, 20], "helper"), ("samples", [10, 30], "store")],
)
def test_every_case_has_a_point_at_every_value(
    settings: BenchSettings, tmp_path: Path, name: str, values: list[int], last: str
) -> None:
    points = sweep(name, settings, CPU, tmp_path)
    keys = ("ce", "kd_stored", "disk_stored", last)
    assert [(point.rate.x, point.rate.key) for point in points] == [(value, key) for value in values for key in keys]
    assert all(point.sweep == name and point.us_per_image > 0 for point in points)
    stored = {point.rate.x: point.bytes_per_view for point in points if point.bytes_per_view is not None}
    assert stored == ({10: 10 * (5 * 2 + 4), 30: 30 * (5 * 2 + 4)} if name == "samples" else {})
