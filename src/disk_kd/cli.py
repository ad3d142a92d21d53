"""The command line: runs a command and turns each error into one line and an exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from disk_kd.commands import COMMANDS, EVERY_OPTION
from disk_kd.data import workers_watched
from disk_kd.errors import ConfigError, DiskKDError, nearest, one_line
from disk_kd.memory import keep_memory
from disk_kd.old_names import OldNameWarning
from disk_kd.plugins import user_code_location
from disk_kd.training import (
    STOPPED,
    StoppedError,
    StopSignal,
    drop_output,
    stop_signals,
)
from disk_kd_command import INTERRUPTED, answer

UNREAD = 141
"""Exit code when the reader of the output closes it early, as shells report SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `disk-kd ARGUMENTS` and return its exit code.

    0: success; 1: unexpected error; 2: bad input, or a failed run; 75: stopped, the run can be resumed; 130:
    interrupted; 141: the reader of the output closed it.
    """
    if arguments is None:  # called as the command, not from another program
        arguments = sys.argv[1:]
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # child processes do not import from the working directory
        threading.excepthook = _thread_failed
        warnings.formatwarning = lambda message, *_, **__: f"disk-kd: {message}\n"
        warnings.showwarning = _hold_old_names
    debug, arguments = "--debug" in arguments, [argument for argument in arguments if argument != "--debug"]
    _replace_unprintable()
    if (text := answer(arguments)) is not None:
        print(text)
        return 0
    keep_memory()
    logging.getLogger("timm.data").setLevel(logging.ERROR)  # its warnings repeat our errors
    try:
        _run(*arguments)
        sys.stdout.flush()
        if not {"--quiet", "--log-json"} & {*arguments}:
            print(*(f"disk-kd: {notice}\n" for notice in dict.fromkeys(_notices)), sep="", end="", file=sys.stderr)
        return 0
    except BrokenPipeError:
        drop_output()
        return UNREAD
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            _show_traceback(error)
        code, message = _exit_code_and_message(error)
        print(f"disk-kd: {message}", file=sys.stderr)
        return code


_NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError."""
_notices: list[str] = []
"""Of options that were given by old names: shown when the command succeeded, so that an error stays one line."""
_show_warning = warnings.showwarning


def _hold_old_names(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, OldNameWarning):
        _notices.append(str(message))
    else:
        _show_warning(message, category, *where, **more)


def _run(name: str, *arguments: str) -> None:
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {nearest(name, COMMANDS)}; disk-kd --help lists them")
    if "--help-all" in arguments and name in EVERY_OPTION:
        print(EVERY_OPTION[name]([argument for argument in arguments if argument != "--help-all"]))
        return
    with stop_signals(), workers_watched():
        COMMANDS[name](arguments)


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """The exit code and the one-line message of an error."""
    if isinstance(error, StoppedError | StopSignal):
        return STOPPED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; go on with --resume (compare, tune: the same command again)"
    if isinstance(error, DiskKDError):
        return 2, str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY in str(error):
        reason = one_line(error).partition(". ")[0]
        return 2, f"{reason}; lower train.batch_size or the image size, or raise train.accumulate"
    kind = f"{type(error).__name__}: {one_line(error)}"
    if (place := user_code_location(error)) is not None:
        return 2, f"{place}: {kind}; --debug shows the traceback"
    if isinstance(error, OSError):
        return 2, f"{one_line(error)}; files written before are complete"
    return 1, f"unexpected error: {kind}; --debug shows the traceback for a bug report"


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Ignore a file that TensorBoard's thread cannot write. The main thread gets the same error and reports it."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def _show_traceback(error: BaseException) -> None:
    """Print the traceback of an error, with those of its causes."""
    each: BaseException | None = error
    while each is not None:
        each.__suppress_context__ = False
        each = each.__cause__ or each.__context__
    traceback.print_exception(error)


def _replace_unprintable() -> None:
    """Print a question mark for each character that the terminal or file cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
