"""Schedules of the budget and its price, in student passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`, begun again every `period` student passes.

    value(t) = start + (end - start) (1 - cos(pi (t mod period) / period)) / 2

    The release's budget is `Cosine(.6, .4, 60)` and its price `Cosine(1, 5, 150)`: 20 and 50 of its epochs,
    each of three student passes. Its restarts also shrink the budget's start by a tenth, which soon turns
    the curve over; that is not repeated here.

    Args:
        start: value at the beginning of each period.
        end: value at its end.
        period: length of a period in student passes.

    Raises:
        ConfigError: `period` is not positive.
    """

    start: float
    end: float
    period: float

    def __post_init__(self) -> None:
        if not self.period > 0:
            raise ConfigError(f"a cosine's period must be positive student passes, not {self.period}")

    def at(self, passes: Tensor) -> Tensor:
        """The value at a time `passes` (0-dim tensor, student passes), on that tensor's device."""
        turn = torch.remainder(passes, self.period) / self.period
        return self.start + (self.end - self.start) * (1 - torch.cos(math.pi * turn)) / 2


def scheduled(value: float | Cosine, passes: Tensor) -> Tensor:
    """`value` at the time `passes`, as a 0-dim tensor: a constant, or the schedule's value there."""
    if isinstance(value, Cosine):
        return value.at(passes)
    return torch.full_like(passes, value)
