"""Command-line arguments, parsed to trees of options and to configurations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from disk_kd.config import RunConfig, check_root, measurable, measured_on, with_name
from disk_kd.data.settings import DataSettings
from disk_kd.errors import ConfigError, nearest, shown
from disk_kd.files import user_path
from disk_kd.hints import HINTS
from disk_kd.measure import EvaluationConfig, TeacherEvaluation
from disk_kd.models.about import recorded_data
from disk_kd.models.settings import ModelSettings
from disk_kd.options import Raw, loaded, merged, nested, read, read_value
from disk_kd.plugins import import_modules, is_foreign, is_user_code
from disk_kd.recipe import CONFIG, PARTS, find_recipe, imports_of, is_run_config, load_recipe, named_in
from disk_kd.tasks import METHODS

Settings = TypeVar("Settings")

_SHORT = {"views": "data.views"}
_SWITCHES = frozenset({"resume", "quiet", "log_json", "print_config", "json"})
_REPEATED = "import"
_PATHS = frozenset({"output", "runs", "data.root", "student.weights", "teacher.weights"})
_NEEDS = {
    _REPEATED: "--import needs a module of yours: --import my_module",
    "method": f"--method needs a name: one of {', '.join(METHODS)}, or your own: my_module:MyTask",
    "hint": f"--hint needs a name: one of {', '.join(HINTS)}, or your own: my_module:MyHint",
}
"""Messages for options without a value."""


@dataclass(frozen=True)
class Given:
    """The parsed arguments of a command.

    Attributes:
        words: arguments that are not options, such as a recipe.
        options: values as typed, by dotted name.
        imports: modules of --import.
        switches: options without a value.
    """

    words: tuple[str, ...]
    options: dict[str, Any]
    imports: tuple[str, ...]
    switches: frozenset[str]

    @property
    def tree(self) -> dict[str, Any]:
        """The options as a recipe holds them. A part is a mapping (--data '{...}') or a name (--data folder).
        Several teachers are a list (--teacher '[{...}, {...}]').
        """
        flat: dict[str, Any] = {}
        for name, value in self.options.items():
            whole = loaded(value) if name in PARTS else None
            if name == "teacher" and isinstance(whole, list):
                flat[f"{name}.members"] = whole
            elif isinstance(whole, dict):
                flat[name] = whole
            else:
                flat[f"{name}.name" if name in PARTS and name != "train" else name] = value
        tree = nested(flat)
        return {**tree, _REPEATED: list(self.imports)} if self.imports else tree


def read_arguments(arguments: Sequence[str], switches: Collection[str] = _SWITCHES) -> Given:
    """Split arguments into words, options (--OPTION VALUE or --OPTION=VALUE) and switches.

    Args:
        arguments: the arguments after the command.
        switches: options that take no value. --resume auto means --resume, for batch scripts.

    Raises:
        ConfigError: an option has no value, or a switch has one.
    """
    words, options, imports, on = list[str](), dict[str, Any](), list[str](), set[str]()
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("--"):
            if argument.startswith("-"):
                raise ConfigError(f"options begin with two dashes: give -{shown(argument)}")
            words.append(argument)
            continue
        typed, equals, value = argument[2:].partition("=")
        name = _SHORT.get(typed, typed).replace("-", "_")
        if name in switches:
            if name == "resume" and not equals and left[:1] == ["auto"]:
                left.pop(0)
            elif equals and value not in ("true", "false", "auto"):
                raise ConfigError(f"--{typed} takes no value, not {shown(value)!r}")
            on |= {name} if value != "false" else set()
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                raise ConfigError(_NEEDS.get(name, f"--{typed} needs a value: --{typed} VALUE"))
            value = left.pop(0)
        if not value and name in _PATHS:
            raise ConfigError(f"--{typed} is empty; give a path, or leave the option out")
        if name == _REPEATED:
            found = loaded(value)
            imports += imports_of({"import": found or "-"})
            if any(not each or each.startswith("-") for each in imports):
                raise ConfigError(_NEEDS[_REPEATED])
        else:
            options.pop(name, None)  # the last value counts
            options[name] = Raw(value)
    return Given(tuple(words), options, tuple(dict.fromkeys(imports)), frozenset(on))


def parse_run(command: str, arguments: Sequence[str]) -> RunConfig:
    """The configuration for `disk-kd COMMAND ARGUMENTS`: defaults, then the recipe, then the options.

    Args:
        command: "train" (always cross-entropy), "distill" or "store-teacher".
        arguments: [RECIPE] and options.

    Raises:
        ConfigError: an unknown recipe, option or method, or a value of the wrong type or out of range.
    """
    given = read_arguments(arguments)
    if len(given.words) > 1:
        raise ConfigError(f"one recipe at a time, not {' and '.join(map(shown, given.words))}; compare runs several")
    path = find_recipe(given.words[0]) if given.words else None
    options = given.tree
    runs = user_path(read_value(Path, options.pop("runs", "runs"), "runs"))
    config = RunConfig.of_recipe(path, options, command=command, runs=runs, resume="resume" in given.switches)
    if config.teacher is None and (typed := next((name for name in given.options if name.startswith("teacher")), None)):
        raise ConfigError(f"{typed} needs a method with a teacher; give disk-kd distill --method kd")
    return config


EVALUATION_SWITCHES = _SWITCHES | {"teachers"}
"""Options of evaluate without a value."""
_EVALUATION: dict[str, Any] = {"split": Literal["test", "validation", "train"], "device": str}


def parse_evaluation(arguments: Sequence[str]) -> EvaluationConfig | TeacherEvaluation:
    """The configuration for `disk-kd evaluate`.

    Args:
        arguments: RUN or WEIGHTS, or a model that has its own weights, and options. The data of a run directory is the
            default. With --teachers, or with options of a teacher, teachers are measured: those of RUN or RECIPE, if
            there is one, and of the options.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type.
    """
    given = _with_own_weights(read_arguments(arguments, EVALUATION_SWITCHES))
    if "teachers" in given.switches or "teacher" in given.tree:
        return _teacher_evaluation(given)
    if len(given.words) != 1:
        raise ConfigError("evaluate needs exactly one model: a run directory, a file of weights, or cifar_resnet10_l")
    tree, imports, own = given.tree, list(given.imports), set(given.imports)
    if unknown := next(iter(tree.keys() - {"data", "model", _REPEATED, *_EVALUATION}), None):
        raise ConfigError(f"unknown option {shown(unknown)}; {nearest(unknown, ['data', 'model', *_EVALUATION])}")
    weights = user_path(given.words[0])
    run = weights if weights.is_dir() else weights.parent
    data = tree.get("data", {})
    if weights.is_dir() or is_run_config(run / CONFIG):
        recipe = load_recipe(run / CONFIG) if (run / CONFIG).is_file() else {}
        check_root(data, below=recipe.get("data", {}))
        data = merged(measurable(recipe.get("data", {}), data), data)
        if weights.is_dir():  # the user gave the run directory itself, so its own modules are trusted
            imports, own = imports + imports_of(recipe), own | named_in(recipe)
    if weights.is_file():
        data = {**recorded_data(weights), **data}
        _check_data_named(weights, str(data.get("name", "")), {*imports, str(tree.get("data", {}).get("name", ""))})
    data = with_name(data)
    import_modules(imports)
    model = None if "model" not in tree else read(ModelSettings, tree["model"], "model")
    own |= {model.name} if model else set()
    values = {key: read_value(kind, tree[key], key) for key, kind in _EVALUATION.items() if key in tree}
    values = {"split": "test", "device": "auto"} | values
    settings = read(DataSettings, data, "data")
    return EvaluationConfig(weights, settings, model, values["split"], values["device"], frozenset(own))


def _with_own_weights(given: Given) -> Given:
    """The arguments of evaluate, with a model that has its own weights given as a teacher.

    Such a model is KIND:PATH in the place of a file of weights, or --model.name without a file.
    """
    foreign = [word for word in given.words if is_foreign(word)]
    if len(foreign) != len(given.words) or not (foreign or "model.name" in given.options):
        return given
    if len(foreign) > 1:
        raise ConfigError(f"evaluate takes one model, not {' and '.join(foreign)}; give --teacher '[...]' for several")
    options = {
        name.replace("model", "teacher", 1) if name.startswith("model") else name: value
        for name, value in given.options.items()
    }
    return replace(given, words=(), options=options | dict(zip(("teacher.name",), foreign, strict=False)))


def _check_data_named(weights: Path, name: str, named: Collection[str]) -> None:
    """Refuse data of a user's code that only the files beside a file of weights name: importing it runs its code."""
    if is_user_code(name) and name not in named and name.partition(":")[0] not in named:
        raise ConfigError(
            f"the configuration beside {weights} names the data {name}. A module is not imported only because a file"
            f" names it; if you trust it, give --data.name {name}"
        )


def _teacher_evaluation(given: Given) -> TeacherEvaluation:
    tree = given.tree
    if unknown := next(iter(tree.keys() - {"data", "teacher", _REPEATED, *_EVALUATION}), None):
        raise ConfigError(f"unknown option {shown(unknown)}; {nearest(unknown, ['data', 'teacher', *_EVALUATION])}")
    if len(given.words) > 1:
        raise ConfigError(f"evaluate takes one recipe or run directory of teachers, not {' and '.join(given.words)}")
    path = find_recipe(given.words[0]) if given.words else None
    if path is None and "teacher" not in tree:
        raise ConfigError("evaluate --teachers needs a recipe, a run directory, or --teacher.name NAME")
    values = {key: read_value(kind, tree.pop(key), key) for key, kind in _EVALUATION.items() if key in tree}
    if path is not None:
        tree["data"] = measured_on(load_recipe(path).get("data", {}), tree.get("data", {}))
    config = RunConfig.of_recipe(path, {**tree, "method": "kd", "hint": None})
    return TeacherEvaluation(config, **values)


def parse_settings(settings: type[Settings], arguments: Sequence[str]) -> Settings:
    """Settings of a command whose options are the fields of a dataclass.

    Args:
        settings: the dataclass.
        arguments: the arguments after the command.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type or out of range.
    """
    given = read_arguments(arguments, switches=())
    if given.words:
        raise ConfigError(f"{shown(given.words[0])!r} is not an option; write options as --NAME VALUE")
    import_modules(given.imports)
    return read(settings, nested(given.options))
