"""What a run shows while it trains: a bar on a terminal, lines elsewhere, or events as JSON."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 30.0
"""Seconds between two lines of a run that trains away from a terminal."""


class RunConsole(Console):
    """A console of a command that works for long: where its reader goes away, as `head` does, the command stops.

    It stops as when it is asked to by a signal, so a run that trains saves itself.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()
        signal.raise_signal(signal.SIGTERM)


def drop_output() -> None:
    """Let what is still printed go nowhere: nobody reads it, and Python's last flush would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class JsonConsole(RunConsole):
    """A console whose output is JSON lines: events as they are, and what is printed as {"kind": "message"}.

    Args:
        file: where the lines go; default: standard output.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.lines = sys.stdout if file is None else file
        # So wide that no message is wrapped.
        super().__init__(file=_Messages(self), force_terminal=False, no_color=True, width=10_000)

    def event(self, kind: str, **values: Any) -> None:
        """Write a line; numbers that are not finite are written as null."""
        try:
            self.lines.write(json_line({"kind": kind, **values}))
            self.lines.flush()
        except BrokenPipeError:
            self.on_broken_pipe()


class _Messages(io.StringIO):
    """A file that turns each line that is written into an event."""

    def __init__(self, console: JsonConsole) -> None:
        super().__init__()
        self._console = console
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            self._console.event("message", text=line.rstrip())
        return len(text)


def json_line(values: Mapping[str, Any]) -> str:
    """A line of JSON; numbers that are not finite are written as null."""
    return json.dumps(_finite(values)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Display:
    """Progress: a live bar on a terminal, plain lines elsewhere, events on a `JsonConsole`, nothing on a quiet one.

    What it shows it is told, by `step` and by the lines of the log as they are written: no step waits for the device.

    Args:
        total: steps, or whatever else is counted.
        title: what is under way.
        console: where it goes.
        epochs: that the steps are of; 0: they are of none.
    """

    def __init__(self, total: int, *, title: str, console: Console, epochs: int = 0) -> None:
        self.console, self.title, self.total, self.epochs = console, title, total, epochs
        self._done, self._first = 0, 0
        self._begun = self._told_at = time.monotonic()
        self._images_per_s = 0.0
        self._train: Mapping[str, Any] = {}
        self._bar = ProgressBar(total=max(1, total))
        self._live = Live(console=console, transient=True, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self) -> Display:
        self._begun = self._told_at = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def step(self, done: int) -> None:
        """Say that `done` steps are done; the first call tells where a resumed run began."""
        if not self._done:
            self._first = done - 1
        self._done = done

    def record(self, line: Mapping[str, Any]) -> None:
        """Show a line of the log: kind "train", "validation" or "timing"."""
        if isinstance(self.console, JsonConsole):
            self.console.event(**line)
        elif line["kind"] == "train":
            self._train = line
        elif line["kind"] == "timing":
            self._images_per_s = line["images_per_s"]
            if not self.console.is_terminal and time.monotonic() - self._told_at >= PLAIN_EVERY_S:
                self._told_at = time.monotonic()
                rate = f"{self._images_per_s:,.0f} images/s  {_clock(self._left_s())} left"
                step = f"step {self._done:,}/{self.total:,}"
                self.line("  ".join([self.title, step, train_text(self._train, self.epochs), rate]))
        else:
            told = f"epoch {line['student_epochs']}  validation top-1 {line['top1']:.2f}%  nll {line['nll']:.3f}"
            # The bar of a terminal has the title and the rate, and a narrow one has no room for them twice.
            rate = f"{self._images_per_s:,.0f} images/s"
            self.line(told if self.console.is_terminal else f"{self.title}  {told}  {rate}")

    @property
    def for_people(self) -> bool:
        """Whether a person reads along."""
        return not (self.console.quiet or isinstance(self.console, JsonConsole))

    def first(self, line: Mapping[str, Any]) -> None:
        """Show how training begins, before the first line of the log."""
        self._train = line
        if not self.console.is_terminal:
            self.line(f"{self.title}  step {self._done:,}/{self.total:,}  {train_text(line, self.epochs)}")

    def line(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left_s(self) -> float:
        """Seconds to the end, if the rest takes as long as what was done since the start."""
        done = self._done - self._first
        return (time.monotonic() - self._begun) * (self.total - self._done) / done if done > 0 else math.inf

    def _view(self) -> Group:
        """The bar, and under it what the last line of the log says."""
        self._bar.update(self._done)
        rate = f"{self._images_per_s:,.0f} images/s" if self._images_per_s else ""
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=1, min_width=10)
        for _ in range(3):
            row.add_column(justify="right", no_wrap=True)
        left = f"{_clock(self._left_s())} left"
        row.add_row(Text(self.title), self._bar, f"{self._done:,}/{self.total:,}", rate, left)
        return Group(row, Text(train_text(self._train, self.epochs))) if self._train else Group(row)


def train_text(line: Mapping[str, Any], epochs: int) -> str:
    """A training line of the log in words: epoch, loss and its parts, budget used of asked, top-1.

    Args:
        line: of kind "train".
        epochs: of the whole run, of any phase.
    """
    parts = " ".join(f"{name.removesuffix('_loss')} {_short(line[name])}" for name in line if name.endswith("_loss"))
    told = [f"epoch {line['epoch'] + 1}/{epochs} {line['phase']}"]
    told.append(f"loss {_short(line['loss'])}" + (f" ({parts})" if parts else ""))
    if "budget" in line and "budget_used" in line:
        told.append(f"budget used {_short(line['budget_used'], 2)} of {_short(line['budget'], 2)}")
    if "price" in line:
        told.append(f"price {_short(line['price'])}")
    if "top1" in line:
        told.append(f"top-1 {line['top1']:.1f}%")
    return "  ".join(told)


def _short(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds; dashes where nobody knows."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
