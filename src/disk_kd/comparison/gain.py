"""The gain of one method over another, paired by seed. Table and report both use it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """The first value minus the second for each seed that both have, in the order of seeds."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval by Student's t. A single value has none."""
    if len(values) < 2:
        return values[0], None
    from scipy.special import stdtrit  # here, because it takes a quarter of a second to import

    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)
