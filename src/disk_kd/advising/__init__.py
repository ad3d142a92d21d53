"""A look at data, teacher and hardware before any training, and what follows from it."""

from __future__ import annotations

from disk_kd.advising.advice import Advice, First
from disk_kd.advising.page import page
from disk_kd.advising.run import advise

__all__ = ["Advice", "First", "advise", "page"]
