"""Random numbers as a function of (seed, view, sample), independent of device, order and batch.

A sample's augmentation is drawn from its own 64-bit seed. A view therefore always has the same pixels, and stored
teacher outputs stay valid. The generator is `disk_kd.support.mix`.

Shapes: B samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from disk_kd.support import GAMMA, mix, shift_right


def _as_int64(value: int) -> int:
    """The int64 with the same 64 bits as `value` modulo 2**64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# Draws other than views have negative numbers.
VALIDATION, LIMIT, LABEL_NOISE, TEST, SHUFFLE, MIX = -1, -2, -3, -4, -5, -6
LABELLED, UNLABELLED_ORDER, LIMIT_UNLABELLED = -20, -21, -22
CLASSES, CLASS_ORDER = -23, -24


def sample_seeds(ids: Tensor, view: int, seed: int) -> Tensor:
    """One seed for each (seed, view, sample).

    Args:
        ids: int64 (B,), numbers of the samples in their original split.
        view: number of the augmented view; negative views are this package's own draws.
        seed: seed of the run or the store.

    Returns:
        int64 (B,) on the device of `ids`, equal for equal (id, view, seed).
    """
    state = mix(ids.new_full((1,), _as_int64(seed + GAMMA)))
    state = mix(state + _as_int64((view + 1) * GAMMA))
    return mix(state + (ids + 1) * GAMMA)


def uniform(seeds: Tensor, slot: int) -> Tensor:
    """Uniform numbers k / 2**24, k = 0 … 2**24 - 1.

    Args:
        seeds: int64 (B,) from `sample_seeds`.
        slot: number of the draw; the draws of a sample are independent.

    Returns:
        float32 (B,) in [0, 1).
    """
    bits = mix(seeds + _as_int64((slot + 1) * GAMMA))
    return shift_right(bits, 40).float() * 2.0**-24


def integers(seeds: Tensor, slot: int, high: int) -> Tensor:
    """Uniform integers from 0 to high - 1, int64 (B,); `high` is at most 2**24."""
    return (uniform(seeds, slot) * high).long()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the three global generators that timm uses inside the block, and restores them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
