"""The help of commands whose options are dataclass fields and constructor keywords."""

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
from disk_kd.teacher.settings import EnsembleSettings, TeacherSettings
from disk_kd.training.settings import TrainSettings

_WIDTH = 100
_METHOD_HELP = f"Method: one of {', '.join(METHODS)}, or my_module:MyTask. --method NAME is short for it."
_HINT_HELP = (
    f"Loss on features, added to the method's loss: one of {', '.join(HINTS)}, or my_module:MyHint. --hint NAME is"
    " short for it. null adds none."
)
_RECIPE = "RECIPE is a name from `disk-kd list recipes`, a YAML file or a run's config.yaml. Options override it."
_ABOUT = {
    "train": f"Train a model with cross-entropy, such as a teacher or a baseline. {_RECIPE}",
    "distill": f"Train a student with any method; most methods learn from a teacher. {_RECIPE} --help-all --method"
    " NAME lists the options of that method.",
    "advise": "Look at data, teacher and hardware before training, and print one page: the teacher's accuracy and"
    " calibration on validation, sizes, seconds for an epoch with the teacher online and stored, disk, memory, and what"
    f" to try first. It trains a few steps and writes nothing. {_RECIPE}",
    "store-teacher": "Run the teacher of a recipe over all views of the training data and store the outputs that the"
    f" method reads. Later runs of distill reuse them. {_RECIPE} --views V sets the number of views. If the command is"
    " stopped, start it again to go on. A sample takes 2 bytes per class and view plus 4 bytes (CIFAR-100: 9 MB per"
    " view); with teacher.store_top_k K it takes 4 K + 6 bytes. Feature maps and pooled features take 2 bytes per"
    " number.",
}
_OF_RUN = {
    "output": "Run directory (default: RUNS/RECIPE/seedN)",
    "runs": "Folder of run directories (default: runs)",
    "resume": "Resume the run in its directory; start it if there is none. --resume auto does the same.",
    "description": "Description of the run.",
    "published": "Top-1 accuracy that a paper reports for this recipe, in percent.",
    "import": IMPORT_HELP,
    "quiet": "Print only errors and, at the end, the folder that was written.",
    "log-json": "Print only the log, as lines of JSON (docs/report.md).",
    "print_config": "Print the resolved settings and exit.",
}


def run_help(command: str, arguments: Sequence[str]) -> str:
    """All options of train, distill or store-teacher. The arguments say whose method and hint options are listed."""
    tree = read_arguments(arguments).tree
    method, hint = named("method", tree)[0], named("hint", tree)[0]
    task = find_method(method or ("ce" if command == "train" else DEFAULT_METHOD))
    groups: dict[str, Mapping[str, Option]] = {"data": options_of(DataSettings), "student": options_of(StudentSettings)}
    if has_teacher(task) or hint is not None:
        several = {name: one for name, one in options_of(EnsembleSettings).items() if name != "store"}
        groups["teacher"] = {**options_of(TeacherSettings), **several}
    name = Option("name", str, method or DEFAULT_METHOD, _METHOD_HELP)
    groups["method"] = {"name": name, **options_of_method(task)}
    of_hint = {} if hint is None else options_of(find_hint(hint), OF_HINT)
    groups["hint"] = {"name": Option("name", str | None, hint, _HINT_HELP), **of_hint}
    groups["train"] = options_of(TrainSettings)
    lines = [f"usage: disk-kd {command} [RECIPE] [options]", "", *textwrap.wrap(_ABOUT[command], _WIDTH), ""]
    for group, options in groups.items():
        lines += [
            f"{group}:",
            *(line for name, one in _leaves(options, f"{group}.") for line in _option_lines(name, one)),
            "",
        ]
    lines += ["run:"]
    of_command = {"json": "Print one line of JSON."} if command == "advise" else {}
    lines += [line for name, text in {**_OF_RUN, **of_command}.items() for line in _entry(f"--{name}", text)]
    return "\n".join(lines)


def evaluation_help() -> str:
    """The help of evaluate."""
    about = (
        "Measure a run's student, a file of weights, or a model whose weights this package contains. With --teachers,"
        " or with options of a teacher, measure teachers: each alone, and the ensemble if there are several."
    )
    lines = ["usage: disk-kd evaluate RUN|FILE|MODEL [options]"]
    lines += ["       disk-kd evaluate [RUN|RECIPE] --teachers [options]", "", *textwrap.wrap(about, _WIDTH), ""]
    for name, text in {
        "split": "Split to measure on: test, validation or train (default: test)",
        "device": "Device: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)",
        "json": "Print one line of JSON.",
        "model.name": "Model; needed if the file does not record it.",
        "model.options": "Keyword arguments of the model, as for student.options.",
        "teachers": "Measure the teachers of the run or recipe.",
        "teacher.name": "Measure this teacher. Its other options are those of distill, such as --teacher.weights;"
        " --teacher '[{...}, {...}]' names several.",
        "import": IMPORT_HELP,
    }.items():
        lines += _entry(f"--{name}", text)
    lines += ["", "data (defaults: the data of the run):"]
    lines += [
        line for name, option in _leaves(options_of(DataSettings)) for line in _option_lines(f"data.{name}", option)
    ]
    return "\n".join(lines)


def settings_help(command: str, about: str, settings: type) -> str:
    """The help of a command whose options are dataclass fields."""
    lines = [f"usage: disk-kd {command} [options]", "", *textwrap.wrap(about, _WIDTH), ""]
    return "\n".join(
        [*lines, *(line for name, option in _leaves(options_of(settings)) for line in _option_lines(name, option))]
    )


def _leaves(options: Mapping[str, Option], prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Options by dotted name. The options of a nested dataclass are listed one by one."""
    for name, option in options.items():
        if option.nested is not None and option.kind is option.nested:
            yield from _leaves(options_of(option.nested), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", option


def _option_lines(name: str, option: Option) -> list[str]:
    default = "" if option.default is MISSING else f"; default: {_value(option.default)}"
    return _entry(f"--{name}", f"{option.help} ({option.takes}{default})".strip())


def _value(default: Any) -> str:
    value = plain(default)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _entry(option: str, text: str) -> list[str]:
    first = f"  {option:<28}"
    lines = textwrap.wrap(text, _WIDTH - 30) or [""]
    head = [f"{first} {lines[0]}"] if len(first) <= 30 else [first, " " * 31 + lines[0]]
    return [*head, *(" " * 31 + line for line in lines[1:])]
