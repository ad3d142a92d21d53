"""What the commands share: argument parsers, consoles and the last lines of quiet commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from disk_kd import ranks
from disk_kd.errors import ConfigError, nearest
from disk_kd.files import user_path
from disk_kd.plugins import IMPORT_HELP
from disk_kd.training import (
    JsonConsole,
    RunConsole,
)


class TableConsole(Console):
    """A console for commands other than runs. It ends the command when the reader of the output closes it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Parser(argparse.ArgumentParser):
    """argparse with our errors. Abbreviated option names are not accepted."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        unknown, _, option = message.partition(": --")
        if unknown == "unrecognized arguments":
            option = option.split()[0].partition("=")[0]
            known = (name.lstrip("-") for name in self._option_string_actions)
            raise ConfigError(f"unknown option --{option}; {nearest(option, known)}")
        raise ConfigError(message)


def path(text: str) -> Path:
    try:
        return user_path(text)
    except ConfigError as error:  # argparse would replace the message
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1,000,000, not {text}")
    return number


def parse_with_options(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, list[str]]:
    """The parser's own options, and the options of runs, which it does not know.

    argparse takes an option for a positional argument if there is a space in it, as in --student.options={a: 1}.
    """
    tokens = joined(arguments, parser)
    spaced = [token for token in tokens if token.startswith("--") and " " in token.partition("=")[2]]
    spaced = [token for token in spaced if token.partition("=")[0] not in parser._option_string_actions]
    options, rest = parser.parse_known_args([token for token in tokens if token not in spaced])
    return options, [*rest, *spaced]


def joined(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments with --OPTION VALUE of a run written as --OPTION=VALUE, so that no value is read as a recipe."""
    joined, left = list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        of_runs = argument.startswith("--") and "=" not in argument and argument not in parser._option_string_actions
        if of_runs and left and not left[0].startswith("--"):
            argument = f"{argument}={left.pop(0)}"
        joined.append(argument)
    return joined


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        choices=("true", "false"),
        default="true",
        help="Write an HTML report of the comparison (default: true).",
    )
    add_quiet(parser)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quiet", action="store_true", help="Print only errors and, at the end, the paths that were written."
    )
    parser.add_argument("--log-json", action="store_true", help="Print only the log, as lines of JSON.")


def add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE", help=IMPORT_HELP)


def console_of(quiet: bool, as_json: bool) -> Console:
    """The console of a command. Only the main rank prints."""
    if quiet and as_json:
        raise ConfigError("--quiet prints no log and --log-json prints all of it; give one of the two")
    if as_json and ranks.is_main():
        return JsonConsole()
    return RunConsole(quiet=quiet or not ranks.is_main())


def print_paths(*paths: Path) -> None:
    """Print the paths that a quiet command wrote."""
    if ranks.is_main():
        print(*paths, sep="\n")
