"""A search for the best method and its settings, and what distillation gains with them over the labels alone."""

from __future__ import annotations

from disk_kd.tuning.candidate import DEFAULT, Candidate, Source, candidates_of
from disk_kd.tuning.outcome import Gain
from disk_kd.tuning.request import TuneRequest, read_request
from disk_kd.tuning.run import Tuned, tune

__all__ = [
    "DEFAULT",
    "Candidate",
    "Gain",
    "Source",
    "TuneRequest",
    "Tuned",
    "candidates_of",
    "read_request",
    "tune",
]
