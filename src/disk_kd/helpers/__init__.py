"""Helpers g(x) in [0, 1]: solved exactly, or computed by a network."""

from __future__ import annotations

from disk_kd.helpers.exact import UNITS, Unit, exact_helper
from disk_kd.helpers.networks import (
    HELPERS,
    BothMapsHelper,
    HelperNetwork,
    StudentMapHelper,
    TeacherLogitsHelper,
    TeacherMapHelper,
    TeacherPooledDeepHelper,
    TeacherPooledHelper,
    TeacherPooledNormHelper,
    make_helper,
)

__all__ = [
    "HELPERS",
    "UNITS",
    "BothMapsHelper",
    "HelperNetwork",
    "StudentMapHelper",
    "TeacherLogitsHelper",
    "TeacherMapHelper",
    "TeacherPooledDeepHelper",
    "TeacherPooledHelper",
    "TeacherPooledNormHelper",
    "Unit",
    "exact_helper",
    "make_helper",
]
