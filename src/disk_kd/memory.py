"""Memory settings of this process, and its peak memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt, see mallopt(3)."""


def keep_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the system. It speeds up training on a CPU.

    By default glibc maps each array above 32 MiB separately: the mapping is created, zeroed page by page and released
    in every step. Activations are that large. A teacher at batch 200 spends up to a third of its time on it
    (docs/performance.md).

    Returns:
        Whether the allocator accepted the settings. glibc's does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def peak_host_bytes() -> int:
    """Peak resident memory of this process.

    On Linux getrusage is not used, because there a child process starts with the peak of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
