"""Freed memory stays with the process where the allocator is glibc's."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from disk_kd.memory import keep_memory

COUNT_FAULTS = """
import resource, sys, torch
from disk_kd.memory import keep_memory
if sys.argv[1] == "keep": keep_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2): torch.ones(2**24)
before = faults()
for _ in range(5): torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_large_arrays_are_not_paged_in_anew() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("plain", "keep")
    }
    assert faults["keep"] < faults["plain"] / 3  # one array may find no whole gap


def test_a_system_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_memory() is False
