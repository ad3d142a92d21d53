"""How this process keeps its memory, and how much it had."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (mallopt(3))."""


def keep_memory() -> bool:
    """Let glibc reuse freed memory instead of giving it back to the system; for a process that trains on a CPU.

    By default an array above 32 MiB is a mapping of its own: made, zeroed page by page and thrown away in every step.
    Activations are that large, and a teacher at batch 200 spends up to a third of its time on it (docs/performance.md).

    Returns:
        Whether the system's allocator took the settings: glibc's does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def peak_host_bytes() -> int:
    """The most memory that this process has had resident.

    On Linux not by getrusage: there a process starts at the peak of the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
