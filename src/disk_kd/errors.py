"""Errors of the user's input, each in one line: what was expected, what was given, what to do.

Every error that a user can cause is a `DiskKDError`. The command line prints its message and exits with code 2. In
a program it is an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiskKDError(Exception):
    """Base class of all errors that a user can fix. The message is one line of printable characters."""

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(DiskKDError, ValueError):
    """An option or recipe has a wrong name or value."""


class DataError(DiskKDError, ValueError):
    """A dataset is missing, cannot be read, or does not fit the model."""


class ModelError(DiskKDError, ValueError):
    """The name, shape or interface of a model is wrong."""


class CheckpointError(DiskKDError, ValueError):
    """A file of weights or a checkpoint cannot be read, or does not fit."""


class RunError(DiskKDError, RuntimeError):
    """A run cannot start, resume or write its files."""


def shown(name: str) -> str:
    """A name from outside with line breaks, control codes and undecodable bytes escaped."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters; its type if the message is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def nearest(name: str, valid: Iterable[str], n: int = 3) -> str:
    """The valid names closest to `name`, for the end of an error message.

    Returns a phrase such as ``"nearest: a, b"``. If no name is close, it lists all names if there are at most eight.
    """
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(close)
    if len(names) <= 8:
        return "valid: " + ", ".join(names)
    return f"{len(names)} valid names"
