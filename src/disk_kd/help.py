"""The help of commands whose options are fields of dataclasses and keywords of constructors."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from disk_kd.arguments import read_arguments
from disk_kd.config import DEFAULT_METHOD, OF_HINT, find_hint, find_method, has_teacher, named, options_of_method
from disk_kd.data.settings import DataSettings
from disk_kd.hints import HINTS
from disk_kd.models.settings import StudentSettings
from disk_kd.options import Option, options_of, plain
from disk_kd.plugins import IMPORT_HELP
from disk_kd.tasks import METHODS
from disk_kd.teacher.settings import TeacherSettings
from disk_kd.training.settings import TrainSettings

_WIDTH = 100
_METHOD_HELP = f"one of {', '.join(METHODS)}, or my_module:MyTask; --method is short for it"
_HINT_HELP = f"one of {', '.join(HINTS)}, or my_module:MyHint: a loss between features, added to the method's"
_RECIPE = "RECIPE is a name of `disk-kd list recipes`, a YAML file or a run's config.yaml; options override it."
_ABOUT = {
    "train": f"Train a model with cross-entropy: a teacher, or a baseline. {_RECIPE}",
    "distill": f"Train a student, by default from a teacher. {_RECIPE} --method NAME also chooses whose options"
    " --help-all shows.",
    "store-teacher": "Run the teacher of a recipe over all views of its training data and keep the outputs that the"
    f" method reads, for later runs of distill. {_RECIPE} Give the views with --views V; killed, the same command goes"
    " on. A sample takes 2 bytes per class and view and 4 more (CIFAR-100: 9 MB a view), with teacher.store_top_k K"
    " 4 K + 6; feature maps and pooled features 2 bytes per number.",
}
_OF_RUN = {
    "output": "the run directory; default: RUNS/RECIPE/seedN",
    "runs": "folder of run directories; default: runs",
    "resume": "go on with the run in its directory, or begin it (also: --resume auto)",
    "description": "what the run is for",
    "published": "top-1 that a paper reports, percent",
    "import": IMPORT_HELP,
    "quiet": "print nothing but errors and, at the end, the folder that was made",
    "log-json": "print the log as lines of JSON, and nothing else (docs/report.md)",
    "print_config": "print the resolved recipe and do nothing else",
}


def run_help(command: str, arguments: Sequence[str]) -> str:
    """Every option of train, distill or store-teacher, with those of the method and hint that the arguments name."""
    tree = read_arguments(arguments).tree
    method, hint = named("method", tree)[0], named("hint", tree)[0]
    task = find_method(method or ("ce" if command == "train" else DEFAULT_METHOD))
    groups: dict[str, Mapping[str, Option]] = {"data": options_of(DataSettings), "student": options_of(StudentSettings)}
    if has_teacher(task) or hint is not None:
        groups["teacher"] = options_of(TeacherSettings)
    name = Option("name", str, method or DEFAULT_METHOD, _METHOD_HELP)
    groups["method"] = {"name": name, **options_of_method(task)}
    of_hint = {} if hint is None else options_of(find_hint(hint), OF_HINT)
    groups["hint"] = {"name": Option("name", str | None, hint, _HINT_HELP), **of_hint}
    groups["train"] = options_of(TrainSettings)
    lines = [f"usage: disk-kd {command} [RECIPE] [options]", "", *textwrap.wrap(_ABOUT[command], _WIDTH), ""]
    for group, options in groups.items():
        lines += [f"{group}:", *(line for name, one in _leaves(options, f"{group}.") for line in _told(name, one)), ""]
    lines += ["of the run:"]
    lines += [line for name, text in _OF_RUN.items() for line in _entry(f"--{name}", text)]
    return "\n".join(lines)


def evaluation_help() -> str:
    """The help of evaluate."""
    about = "Measure a run's student, a file of weights, or a model whose weights are part of the package."
    lines = ["usage: disk-kd evaluate RUN|FILE|MODEL [options]", "", about, ""]
    for name, text in {
        "split": "test (default), validation or train: what to measure on",
        "device": "cpu, cuda, ...; default: auto",
        "json": "print one line of JSON",
        "model.name": "a model, where the weights do not say theirs",
        "model.options": "its options, as of a student",
        "import": IMPORT_HELP,
    }.items():
        lines += _entry(f"--{name}", text)
    lines += ["", "data (default: that of the run):"]
    lines += [line for name, option in _leaves(options_of(DataSettings)) for line in _told(f"data.{name}", option)]
    return "\n".join(lines)


def settings_help(command: str, about: str, settings: type) -> str:
    """The help of a command whose options are the fields of a dataclass."""
    lines = [f"usage: disk-kd {command} [options]", "", *textwrap.wrap(about, _WIDTH), ""]
    return "\n".join(
        [*lines, *(line for name, option in _leaves(options_of(settings)) for line in _told(name, option))]
    )


def _leaves(options: Mapping[str, Option], prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Options by dotted name, those of a nested dataclass one by one."""
    for name, option in options.items():
        if option.nested is not None and option.kind is option.nested:
            yield from _leaves(options_of(option.nested), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", option


def _told(name: str, option: Option) -> list[str]:
    default = "" if option.default is MISSING else f"; default: {_value(option.default)}"
    return _entry(f"--{name}", f"{option.help.rstrip('.')} ({option.takes}{default})".strip())


def _value(default: Any) -> str:
    value = plain(default)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _entry(option: str, text: str) -> list[str]:
    first = f"  {option:<28}"
    lines = textwrap.wrap(text, _WIDTH - 30) or [""]
    head = [f"{first} {lines[0]}"] if len(first) <= 30 else [first, " " * 31 + lines[0]]
    return [*head, *(" " * 31 + line for line in lines[1:])]
