"""The display of a run: a progress bar on a terminal, lines elsewhere, or events as JSON."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # torch takes seconds to import
    from disk_kd.tasks import Quantity

PLAIN_EVERY_S = 30.0
"""Seconds between two lines of progress without a terminal."""


class RunConsole(Console):
    """A console for long commands. The command stops when the reader of its output closes it, as `head` does.

    It stops as it does on a signal, so that a run saves a checkpoint.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()
        signal.raise_signal(signal.SIGTERM)


def drop_output() -> None:
    """Discard further output: nobody reads it, and Python's last flush would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class JsonConsole(RunConsole):
    """A console whose output is lines of JSON: events, and printed text as {"kind": "message"}.

    Args:
        file: destination of the lines; None: standard output.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.lines = sys.stdout if file is None else file
        # So wide that no message wraps.
        super().__init__(file=_Messages(self), force_terminal=False, no_color=True, width=10_000)

    def event(self, kind: str, **values: Any) -> None:
        """Write an event as a line of JSON. Numbers that are not finite become null."""
        try:
            self.lines.write(json_line({"kind": kind, **values}))
            self.lines.flush()
        except BrokenPipeError:
            self.on_broken_pipe()


class _Messages(io.StringIO):
    """A file that turns each written line into an event."""

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
    """A line of JSON. Numbers that are not finite become null."""
    return json.dumps(_finite(values)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Display:
    """Progress: a live bar on a terminal, lines elsewhere, events on a `JsonConsole`, nothing on a quiet console.

    It shows the numbers that `step` and the lines of the log give it, so that no step waits for the device.

    Args:
        total: number of steps, or of other items.
        title: name of the work.
        console: output of the display.
        epochs: number of epochs of the steps; 0: the steps have no epochs.
        quantities: what the method logs; those with `progress` are shown.
    """

    def __init__(
        self, total: int, *, title: str, console: Console, epochs: int = 0, quantities: Sequence[Quantity] = ()
    ) -> None:
        self.console, self.title, self.total, self.epochs = console, title, total, epochs
        self.quantities = tuple(quantities)
        self._done, self._first = 0, 0
        self._begun = self._last_line_at = time.monotonic()
        self._images_per_s = 0.0
        self._train: Mapping[str, Any] = {}
        self._bar = ProgressBar(total=max(1, total))
        self._live = Live(console=console, transient=True, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self) -> Display:
        self._begun = self._last_line_at = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def step(self, done: int) -> None:
        """Report that `done` steps are finished. The first call gives the start of a resumed run."""
        if not self._done:
            self._first = done - 1
        self._done = done

    def record(self, line: Mapping[str, Any]) -> None:
        """Show a line of the log, of kind "train", "validation" or "timing"."""
        if isinstance(self.console, JsonConsole):
            self.console.event(**line)
        elif line["kind"] == "train":
            self._train = line
        elif line["kind"] == "timing":
            self._images_per_s = line["images_per_s"]
            if not self.console.is_terminal and time.monotonic() - self._last_line_at >= PLAIN_EVERY_S:
                self._last_line_at = time.monotonic()
                rate = f"{self._images_per_s:,.0f} images/s  {_clock(self._left_s())} left"
                step = f"step {self._done:,}/{self.total:,}"
                self.line("  ".join([self.title, step, self._train_text(), rate]))
        else:
            text = f"epoch {line['student_epochs']}  validation top-1 {line['top1']:.2f}%  nll {line['nll']:.3f}"
            # The bar of a terminal has the title and the rate, and a narrow one has no room for them twice.
            rate = f"{self._images_per_s:,.0f} images/s"
            self.line(text if self.console.is_terminal else f"{self.title}  {text}  {rate}")

    @property
    def for_people(self) -> bool:
        """Whether a person reads the output."""
        return not (self.console.quiet or isinstance(self.console, JsonConsole))

    def first(self, line: Mapping[str, Any]) -> None:
        """Show the start of training, before the first line of the log."""
        self._train = line
        if not self.console.is_terminal:
            self.line(f"{self.title}  step {self._done:,}/{self.total:,}  {self._train_text()}")

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left_s(self) -> float:
        """Seconds to the end, at the average speed since the start."""
        done = self._done - self._first
        return (time.monotonic() - self._begun) * (self.total - self._done) / done if done > 0 else math.inf

    def _view(self) -> Group:
        """The bar, and below it the last line of the log."""
        self._bar.update(self._done)
        rate = f"{self._images_per_s:,.0f} images/s" if self._images_per_s else ""
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=1, min_width=10)
        for _ in range(3):
            row.add_column(justify="right", no_wrap=True)
        left = f"{_clock(self._left_s())} left"
        row.add_row(Text(self.title), self._bar, f"{self._done:,}/{self.total:,}", rate, left)
        return Group(row, Text(self._train_text())) if self._train else Group(row)

    def _train_text(self) -> str:
        return train_text(self._train, self.epochs, self.quantities)


def train_text(line: Mapping[str, Any], epochs: int, quantities: Sequence[Quantity] = ()) -> str:
    """A training line of the log as text: epoch, loss and its parts, budget used and allowed, top-1.

    Args:
        line: of kind "train".
        epochs: number of epochs of the whole run, of all phases.
        quantities: what the method logs; those with `progress` are in the text.
    """
    parts = " ".join(f"{name.removesuffix('_loss')} {_short(line[name])}" for name in line if name.endswith("_loss"))
    texts = [f"epoch {line['epoch'] + 1}/{epochs} {line['phase']}"]
    texts.append(f"loss {_short(line['loss'])}" + (f" ({parts})" if parts else ""))
    for quantity in quantities:
        if quantity.progress and quantity.name in line:
            limit = line.get(quantity.limit or "")
            text = f"{quantity.name.replace('_', ' ')} {quantity.text(line[quantity.name])}"
            texts.append(text if limit is None else f"{text} of {quantity.text(limit)}")
    if "labelled" in line:
        texts.append(f"labelled {line['labelled']:.3g}%")
    if math.isfinite(line.get("top1", math.nan)):
        texts.append(f"top-1 {line['top1']:.1f}%")
    return "  ".join(texts)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds; dashes if unknown."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
