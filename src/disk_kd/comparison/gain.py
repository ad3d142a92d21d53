"""The gain of one method over another, paired by seed: the same number in the table and on the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Our value less theirs at each seed that both have, by seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval by Student's t; None of a single value."""
    if len(values) < 2:
        return values[0], None
    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)
