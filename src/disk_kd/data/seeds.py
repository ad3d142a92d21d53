"""Random numbers that are a function of (seed, view, sample), whatever the device, order or batch.

A sample's augmentation is drawn from its own 64-bit seed, so a teacher's outputs stored for a view meet
exactly the same pixels again. The generator is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast
splittable pseudorandom number generators", OOPSLA 2014), in int64 arithmetic that wraps as uint64 does.

Shapes: B samples.
"""

from __future__ import annotations

from torch import Tensor


def _as_int64(value: int) -> int:
    """The int64 with the same 64 bits as `value` modulo 2**64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# Draws that are no view of a sample take the views below zero.
VALIDATION, LIMIT, LABEL_NOISE, TEST, SHUFFLE = -1, -2, -3, -4, -5

_GAMMA = 0x9E3779B97F4A7C15
_FACTOR_1 = _as_int64(0xBF58476D1CE4E5B9)
_FACTOR_2 = _as_int64(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign bit, which the mask removes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _FACTOR_1
    x = (x ^ _shift_right(x, 27)) * _FACTOR_2
    return x ^ _shift_right(x, 31)


def sample_seeds(ids: Tensor, view: int, seed: int) -> Tensor:
    """One seed for each (seed, view, sample).

    Args:
        ids: int64 (B,), a sample's number in its original split.
        view: which augmented view of the samples; negative views are this package's own draws.
        seed: the run's or the store's seed.

    Returns:
        int64 (B,) on the device of `ids`, equal for equal (id, view, seed).
    """
    state = _mix(ids.new_full((1,), _as_int64(seed + _GAMMA)))
    state = _mix(state + _as_int64((view + 1) * _GAMMA))
    return _mix(state + (ids + 1) * _as_int64(_GAMMA))


def uniform(seeds: Tensor, slot: int) -> Tensor:
    """Uniform numbers k / 2**24, k = 0 … 2**24 - 1.

    Args:
        seeds: int64 (B,) of `sample_seeds`.
        slot: which of a sample's independent draws.

    Returns:
        float32 (B,) in [0, 1).
    """
    bits = _mix(seeds + _as_int64((slot + 1) * _GAMMA))
    return _shift_right(bits, 40).float() * 2.0**-24


def integers(seeds: Tensor, slot: int, high: int) -> Tensor:
    """Uniform whole numbers 0 … high - 1, int64 (B,); `high` at most 2**24."""
    return (uniform(seeds, slot) * high).long()
