from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from disk_kd import memory
from disk_kd.bench import BenchSettings, peak
from disk_kd.bench.peak import peak_host_bytes, peak_memory
from disk_kd.errors import RunError


def test_the_peak_is_of_this_process_and_stays() -> None:
    before = peak_host_bytes()
    np.ones(64 << 20, dtype=np.uint8)
    after = peak_host_bytes()
    assert after >= before > 2**20
    assert peak_host_bytes() == after


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="how Linux counts")
def test_a_large_parent_does_not_count() -> None:
    child = f"import runpy; print(runpy.run_path({memory.__file__!r})['peak_host_bytes']())"
    large = np.ones(3 << 29, dtype=np.uint8)
    said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
    assert int(said) < large.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("key", ["ce", "disk_stored"])
def test_a_case_is_measured_in_a_process_of_its_own(settings: BenchSettings, key: str) -> None:
    measured = peak_memory(key, settings)
    assert measured.host_bytes > 2**27
    assert measured.device_bytes is None
    assert measured.teacher == (settings.teachers[0] if key == "disk_stored" else None)


@pytest.mark.slow
def test_a_process_that_dies_is_one_line(settings: BenchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_train", _die)
    with pytest.raises(RunError, match="memory of ce: its process died"):
        peak_memory("ce", settings)


def _die(key: str, settings: BenchSettings) -> None:
    os._exit(9)
