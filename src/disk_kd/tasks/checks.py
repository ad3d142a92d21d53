"""Checks of the tasks' settings: the value when it is right, one clear line when it is not."""

from __future__ import annotations

import math

from disk_kd.errors import ConfigError


def positive(name: str, value: float) -> float:
    """`value`, a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a positive number, not {value}")
    return value


def non_negative(name: str, value: float) -> float:
    """`value`, a finite number not below zero."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} must be a number not below 0, not {value}")
    return value


def fraction(name: str, value: float) -> float:
    """`value`, a number in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must be in [0, 1), not {value}")
    return value


def share(name: str, value: float) -> float:
    """`value`, a number in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be in [0, 1], not {value}")
    return value
