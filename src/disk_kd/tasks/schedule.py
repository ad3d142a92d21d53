"""Schedules of the budget and its price, in student epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`, restarted every `period` student epochs.

    value(t) = start_n + (end - start_n) (1 - cos(pi (t mod period) / period)) / 2
    start_n  = start start_decay^n in the period n = floor(t / period)

    The release's price is `Cosine(1, 5, 150)` and its budget `Cosine(.6, .4, 60, start_decay=.9)`: 50 and 20 of its
    epochs, each of three student epochs. The decay is a known fault of the release: from the fifth period on the
    budget's start lies below its end (.6 * .9^4 < .4), and the curve rises. It is off by default.

    Args:
        start: Value at the start of the first period.
        end: Value at the end of each period.
        period: Length of a period in student epochs.
        start_decay: Factor on the start value at each restart. 1 keeps all periods equal.

    Raises:
        ConfigError: a number is not finite, `period` is not positive, or `start_decay` not above 0 and at most 1.
    """

    start: float
    end: float
    period: float
    start_decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"a cosine's {name} must be a finite number, not {getattr(self, name)}")
        if not 0 < self.period < math.inf:
            raise ConfigError(f"a cosine's period must be positive student epochs, not {self.period}")
        if not 0 < self.start_decay <= 1:
            raise ConfigError(f"a cosine's start_decay must be above 0 and at most 1, not {self.start_decay}")

    def at(self, epochs: Tensor) -> Tensor:
        """The value at a time `epochs` (0-dim tensor, student epochs), on that tensor's device."""
        turn = torch.remainder(epochs, self.period) / self.period
        start: float | Tensor = self.start
        if self.start_decay < 1:
            start = start * self.start_decay ** torch.floor(epochs / self.period)
        return start + (self.end - start) * (1 - torch.cos(math.pi * turn)) / 2


def scheduled(value: float | Cosine, epochs: Tensor) -> Tensor:
    """`value` at the time `epochs`, as a 0-dim tensor: a constant, or the schedule's value there."""
    if isinstance(value, Cosine):
        return value.at(epochs)
    return torch.full_like(epochs, value)
