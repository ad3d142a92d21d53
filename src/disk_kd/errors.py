"""What a user did wrong, said in one line: what was expected, what came, what to do.

Every error a user can cause is a `DiskKDError`. The command line prints its message and exits with
code 2; in a program it is an exception like any other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiskKDError(Exception):
    """Base of all errors that a user can mend; its message is one line of printable characters."""

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(DiskKDError, ValueError):
    """An option or recipe holds a wrong key or value."""


class DataError(DiskKDError, ValueError):
    """A dataset is missing, unreadable, or does not fit the model."""


class ModelError(DiskKDError, ValueError):
    """A model's name, shape or interface is not what is needed."""


class CheckpointError(DiskKDError, ValueError):
    """A file of weights or a run's checkpoint cannot be read, or does not fit."""


class RunError(DiskKDError, RuntimeError):
    """A run cannot start, go on, or be written."""


def shown(name: str) -> str:
    """A name that came from outside, with escapes in the place of line breaks, control codes and undecodable bytes."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def nearest(name: str, valid: Iterable[str], n: int = 3) -> str:
    """Names the valid names nearest to `name`, for the end of an error message.

    Returns a phrase such as ``"nearest: a, b"``; all names when there are at most eight and none is near.
    """
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(close)
    if len(names) <= 8:
        return "valid: " + ", ".join(names)
    return f"{len(names)} valid names"
