"""What a run writes while it trains: metrics as JSON lines, TensorBoard when installed, progress on the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from disk_kd import ranks


class Meter:
    """Means over the steps since the last line, summed on the device so that no step waits for the host."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add a step's detached 0-dim tensors; the names are the same until `means` is called."""
        stacked = torch.stack([value.float() for value in values.values()])
        self.names = list(values)
        self.sums = stacked if self.sums is None else self.sums + stacked
        self.steps += 1

    def means(self) -> dict[str, float]:
        """The means by name, over all ranks, with the one wait for the device; and begin anew."""
        if self.sums is None:
            return {}
        means = dict(zip(self.names, (ranks.mean(self.sums) / self.steps).tolist(), strict=True))
        self.sums, self.steps = None, 0
        return means

    def finite(self) -> bool:
        """Whether all that was added is finite; it waits for the device."""
        return self.sums is None or bool(self.sums.isfinite().all())

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"names": self.names, "sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """From a checkpoint."""
        self.names, self.steps = list(state["names"]), state["steps"]
        self.sums = None if state["sums"] is None else state["sums"].to(device)


class MetricsLog:
    """`metrics.jsonl`, a function of config and seed alone, and `timing.jsonl` beside it, which is not.

    The two are apart so that a resumed run's metrics equal an undisturbed run's to the byte. Of many
    ranks the main one alone writes.
    """

    def __init__(self, folder: Path, *, keep_bytes: int = 0) -> None:
        """Open the logs; what stands after the first `keep_bytes` of the metrics is from after the checkpoint."""
        writes = ranks.is_main()
        self._metrics = (folder / "metrics.jsonl" if writes else Path(os.devnull)).open("ab")
        self._timing = (folder / "timing.jsonl" if writes else Path(os.devnull)).open("ab")
        self._board = _tensorboard(folder) if writes else None
        if writes:
            self._metrics.truncate(keep_bytes)
            self._metrics.seek(0, os.SEEK_END)

    def metrics(self, kind: str, step: int, **values: Any) -> None:
        """Append a line of metrics; numbers that are not finite are written as null."""
        line = {"kind": kind, "step": step, **values}
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        self._metrics.write((json.dumps(finite) + "\n").encode())
        self._metrics.flush()
        self._scalars(kind, step, values)

    def timing(self, step: int, **values: float) -> None:
        """Append a line of times and rates."""
        self._timing.write((json.dumps({"step": step, **values}) + "\n").encode())
        self._timing.flush()
        self._scalars("timing", step, values)

    def sync(self) -> int:
        """Bytes of metrics that are safe on the disk; a checkpoint records them."""
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._timing.close()
        if self._board is not None:
            self._board.close()

    def _scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)


def _tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard events, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


class Display:
    """Progress of a run: a live bar on a terminal, one line an evaluation elsewhere, nothing on a quiet console."""

    def __init__(self, total_steps: int, *, title: str, console: Console) -> None:
        self.console = console
        self.title = title
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=console.quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total_steps, note="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, done: int) -> None:
        """Move the bar to `done` steps."""
        self._bar.update(self._task, completed=done)

    def note(self, phase: str, images_per_s: float, means: Mapping[str, float]) -> None:
        """Show the latest means beside the bar."""
        shown = " ".join(f"{name} {means[name]:.3g}" for name in ("loss", "budget_used") if name in means)
        self._bar.update(self._task, note=f"{phase} {shown} {images_per_s:,.0f} images/s")

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)
