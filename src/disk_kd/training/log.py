"""The logs of a run: JSON lines, TensorBoard if it is installed, and `train.logger`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disk_kd import ranks
from disk_kd.errors import RunError
from disk_kd.training.display import json_line
from disk_kd.training.tracking import Tracker


class Meter:
    """Means over the steps since the last line and over all ranks, summed on the device: no step waits for the host.

    The values of each step are shared at once, so all ranks have the same state to save.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the detached 0-dim tensors of a step. The names are the same until `means` is called."""
        stacked = ranks.mean(torch.stack([value.float() for value in values.values()]))
        self.names = list(values)
        self.sums = stacked if self.sums is None else self.sums + stacked
        self.steps += 1

    def means(self) -> dict[str, float]:
        """The means by name; then start again. It waits for the device, once."""
        if self.sums is None:
            return {}
        means = self.so_far()
        self.sums, self.steps = None, 0
        return means

    def so_far(self) -> dict[str, float]:
        """The current means. It waits for the device."""
        if self.sums is None:
            return {}
        means = dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True))
        if "labelled" in means:  # an accuracy on the labelled images is a ratio of means, not a mean of ratios
            means["top1"] = 100 * means["top1"] / means["labelled"] if means["labelled"] else math.nan
        return means

    def finite(self) -> bool:
        """Whether all added values are finite. It waits for the device."""
        return self.sums is None or bool(self.sums.isfinite().all())

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {"names": self.names, "sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load the state from a checkpoint."""
        self.names, self.steps = list(state["names"]), state["steps"]
        self.sums = None if state["sums"] is None else state["sums"].to(device)


class MetricsLog:
    """`metrics.jsonl`, which depends on config and seed alone, and `timing.jsonl`, which does not.

    They are separate so that a resumed run has the same metrics as an uninterrupted run, byte for byte. Only the main
    rank writes.

    Args:
        folder: run directory.
        keep_bytes: bytes of the metrics up to the checkpoint; later lines are removed.
        show: gets each line; lines of `timing.jsonl` have the kind "timing".
        tracker: gets the numbers too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_bytes: int = 0,
        show: Callable[[Mapping[str, Any]], None] | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self._show = show or (lambda line: None)
        self._tracker = tracker
        writes, metrics = ranks.is_main(), folder / "metrics.jsonl"
        if writes and keep_bytes > (metrics.stat().st_size if metrics.exists() else 0):
            raise RunError(f"{metrics} has lost lines since the checkpoint; restore it, or start in another --output")
        self._metrics = (metrics if writes else Path(os.devnull)).open("ab")
        self._timing = (folder / "timing.jsonl" if writes else Path(os.devnull)).open("ab")
        self._board = _tensorboard(folder) if writes else None
        if writes:
            self._metrics.truncate(keep_bytes)
            self._metrics.seek(0, os.SEEK_END)

    def metrics(self, kind: str, step: int, **values: Any) -> None:
        """Append a line of metrics. Numbers that are not finite become null."""
        line = {"kind": kind, "step": step, **values}
        self._metrics.write(json_line(line).encode())
        self._metrics.flush()
        self._scalars(kind, step, values)
        self._show(line)

    def timing(self, step: int, **values: float) -> None:
        """Append a line of times and rates."""
        self._timing.write(json_line({"step": step, **values}).encode())
        self._timing.flush()
        self._scalars("timing", step, values)
        self._show({"kind": "timing", "step": step, **values})

    def sync(self) -> int:
        """Sync the metrics to the disk. Returns their bytes, which a checkpoint records."""
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._timing.close()
        if self._board is not None:
            self._board.close()

    def _scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        if self._tracker is not None:
            self._tracker.log(numbers, step)
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer; None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
