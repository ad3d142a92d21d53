"""The configuration of a run. It is read from a mapping and written as YAML.

The options of a method are the keywords of its task's constructor.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from disk_kd.data.settings import DataSettings, dataset_name, with_absolute_paths
from disk_kd.errors import ConfigError, shown
from disk_kd.files import user_path
from disk_kd.hints import HINTS, Hint
from disk_kd.models.about import read_about
from disk_kd.models.foreign import short_name
from disk_kd.models.settings import StudentSettings
from disk_kd.old_names import new_options
from disk_kd.options import (
    Option,
    dotted,
    environment_names,
    merged,
    nearest_option,
    options_of,
    plain,
    read,
    read_options,
    read_value,
)
from disk_kd.plugins import find_class, import_modules, is_on_hub, is_user_code
from disk_kd.recipe import (
    CONFIG,
    PARTS,
    TUNE,
    WRITTEN_BY,
    imports_of,
    load_recipe,
    recipe_name,
    referred,
    run_folder,
    with_members,
    without_schedule,
    without_teacher,
)
from disk_kd.tasks import METHODS, Quantity, StudentTask
from disk_kd.teacher.settings import AnyTeacherSettings, EnsembleSettings, TeacherSettings, read_teacher
from disk_kd.training.settings import TrainSettings

DEFAULT_METHOD = "kd"
"""The default method of `distill`. It was best, or tied with the best, in docs/results.md."""

ENVIRONMENT = frozenset(
    f"{part}.{name}"
    for part, settings in (("data", DataSettings), ("teacher", TeacherSettings), ("train", TrainSettings))
    for name in environment_names(settings)
)
"""Dotted names of the options that do not change the result of a run, as declared by `options.environment`."""

_MEMBERS = "teacher.members"
"""The option that lists several teachers."""

_ABOUT = frozenset({"import", "description", "published", "output"})
"""Keys of a configuration that name or describe a run."""


def identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run's result depends on.

    Resuming, the report's groups, the conditions of a comparison and the published number of a recipe all compare
    these.

    Args:
        options: by dotted name, as of `dotted(config.to_tree())`.
    """
    found = {name: value for name, value in options.items() if name not in ENVIRONMENT and name not in _ABOUT}
    members = found.pop(_MEMBERS, None) or []
    return found | dotted({f"{_MEMBERS}.{number}": member for number, member in enumerate(members)})


_BESIDE = {"import": list[str] | str, "description": str, "published": float | None, "output": Path | None}
"""The other keys of a recipe."""
OF_METHOD, OF_HINT = frozenset({"student", "teacher", "steps_per_epoch"}), frozenset({"context"})
"""Constructor keywords of tasks and hints that the run sets itself."""


@dataclass(frozen=True)
class RunConfig:
    """The full configuration of a run.

    Attributes:
        data, student, teacher, train: settings of the parts. `teacher` is None if the method has no teacher; it may be
            several teachers.
        method: name of a method in `disk_kd.tasks.METHODS`, or my_module:MyTask.
        method_options: keywords of the method's task, with all values.
        hint: name of a feature method in `disk_kd.hints.HINTS`, or my_module:MyHint; None: no feature method.
        hint_options: keywords of the hint.
        imports: modules to import first.
        description: description of the run.
        published: top-1 accuracy that a paper reports, in percent.
        output: the run directory.
        runs: folder of run directories. It contains the teacher store.
        resume: whether to resume an unfinished run.
        shares_views: whether the run belongs to a comparison, whose rows use the same augmented images
            (`decide_views`).
    """

    data: DataSettings
    student: StudentSettings
    teacher: AnyTeacherSettings | None
    method: str
    method_options: dict[str, Any]
    hint: str | None
    hint_options: dict[str, Any]
    train: TrainSettings
    output: Path
    imports: tuple[str, ...] = ()
    description: str = ""
    published: float | None = None
    runs: Path = field(default=Path("runs"))
    resume: bool = False
    shares_views: bool = False

    @classmethod
    def from_tree(
        cls,
        tree: Mapping[str, Any],
        *,
        runs: Path = Path("runs"),
        name: str | None = None,
        resume: bool = False,
        shares_views: bool = False,
    ) -> RunConfig:
        """A configuration from a mapping, as in a recipe or a run's config.yaml.

        Paths become absolute, so that the run can be repeated from another folder. Weights recipe:NAME become the run
        directory of that recipe.

        Args:
            tree: options by part: data, student, teacher, method, hint and train; and import, description, published
                and output. Missing parts have their defaults. `method` and `hint` are a name, or a mapping with a
                `name`.
            runs: folder of run directories.
            name: name of the run's folder in `runs`, if the tree has no output; None: STUDENT-METHOD.
            resume: whether to resume an unfinished run.
            shares_views: as the attribute.

        Raises:
            ConfigError: an unknown option, method, hint or recipe, or a value of the wrong type or out of range.
        """
        for key in tree:
            if key not in (*PARTS, *_BESIDE):
                raise ConfigError(f"unknown option {shown(str(key))}; {nearest_option(str(key), _known())}")
        tree = new_options(with_members(tree))
        imports = imports_of(tree)
        import_modules(imports)
        beside = {key: read_value(kind, tree[key], key) for key, kind in _BESIDE.items() if key in tree}
        method, method_tree = named("method", tree)
        hint, hint_tree = named("hint", tree)
        method = method or DEFAULT_METHOD
        task = find_method(method)
        if hint is None and hint_tree:
            raise ConfigError(
                f"--hint.{next(iter(hint_tree))} is an option of a feature method; give --hint NAME too:"
                f" {', '.join(HINTS)}"
            )
        data = with_absolute_paths(read(DataSettings, with_name(_part("data", tree)), "data"))
        train = read(TrainSettings, _part("train", tree), "train")
        student = read(StudentSettings, _part("student", tree), "student")
        teacher = read_teacher(_with_recorded_name(_part("teacher", tree)))
        learns = has_teacher(task) or hint is not None
        options = _method_options(method, task, method_tree)
        runs = user_path(runs)
        output = beside.get("output") or runs / (name or f"{short_name(student.name)}-{method}") / f"seed{train.seed}"
        return cls(
            data=data,
            student=replace(student, weights=_located(student.weights, runs, train.seed)),
            teacher=teacher.changed(lambda one: replace(one, weights=_located(one.weights, runs, 0)))
            if learns
            else None,
            method=method,
            method_options=options,
            hint=hint,
            hint_options={} if hint is None else _hint_options(hint, hint_tree),
            train=train,
            output=user_path(output),
            imports=tuple(dict.fromkeys(imports)),
            description=beside.get("description", ""),
            published=beside.get("published"),
            runs=runs,
            resume=resume,
            shares_views=shares_views,
        )

    @classmethod
    def of_recipe(
        cls,
        path: Path | None,
        options: Mapping[str, Any],
        *,
        command: str = "distill",
        runs: Path = Path("runs"),
        resume: bool = False,
        shares_views: bool = False,
    ) -> RunConfig:
        """The configuration of a recipe file with options that override it.

        Args:
            path: file of the recipe; None: no recipe.
            options: as in a recipe.
            command: "train" (always cross-entropy), "distill" or "store-teacher".
            runs, resume, shares_views: as for `from_tree`.

        Raises:
            ConfigError: as for `from_tree`.
        """
        recipe = {} if path is None else load_recipe(path)
        recipe.pop(TUNE, None)
        imports = [*imports_of(recipe), *imports_of(options)]
        import_modules(imports)
        tree = with_options(recipe, {**options, "import": imports}, "ce" if command == "train" else DEFAULT_METHOD)
        method, hint = tree["method"]["name"], tree["hint"]["name"]
        if command == "train" and (method != "ce" or hint is not None):
            raise ConfigError(f"disk-kd train is for cross-entropy; run {hint or method} with disk-kd distill")
        if path is not None and path.name == CONFIG and resume:
            tree["output"] = str(path.parent)
        name = None if path is None else recipe_name(path)
        return cls.from_tree(tree, runs=runs, name=name, resume=resume, shares_views=shares_views)

    @classmethod
    def read(cls, folder: Path, *, runs: Path = Path("runs"), resume: bool = False) -> RunConfig:
        """The configuration in a run directory.

        Raises:
            ConfigError: its config.yaml is not valid in this version.
        """
        tree = load_recipe(folder / CONFIG)
        return cls.from_tree({**tree, "output": str(folder)}, runs=runs, resume=resume)

    def to_tree(self) -> dict[str, Any]:
        """The mapping from which `from_tree` makes the same run, without `runs`, `resume` and `shares_views`."""
        parts = {part: getattr(self, part) for part in ("data", "student", "teacher")}
        tree: dict[str, Any] = {name: asdict(part) for name, part in parts.items() if part is not None}
        for member in tree.get("teacher", {}).get("members", ()):
            del member["store"]  # one for all of them
        tree["method"] = {"name": self.method, **self.method_options}
        tree["hint"] = {"name": self.hint, **self.hint_options}
        tree["train"] = asdict(self.train)
        beside = {"import": self.imports, "description": self.description, "published": self.published}
        return plain({**tree, **beside, "output": self.output})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The options that the run's result depends on, by dotted name: `identity` of its tree."""
        return identity(dotted(self.to_tree()))

    @property
    def each_teacher(self) -> tuple[RunConfig, ...]:
        """The configuration with each of its teachers alone; empty without a teacher."""
        return () if self.teacher is None else tuple(replace(self, teacher=one) for one in self.teacher.each)

    @property
    def task_class(self) -> type[StudentTask]:
        """The class of the run's method."""
        return find_method(self.method)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What the method logs beside losses, as its task declares it."""
        return self.task_class.quantities(self.method_options)

    def to_yaml(self) -> str:
        """The run's config.yaml. It is enough to repeat the run."""
        return (
            f"{WRITTEN_BY}{version('disk-kd')}\n{yaml.safe_dump(self.to_tree(), sort_keys=False, allow_unicode=True)}"
        )

    def decided(self, decisions: Mapping[str, Any]) -> RunConfig:
        """The same configuration with open options decided.

        Args:
            decisions: values by dotted name, such as "train.compile".
        """
        config = self
        for name, value in decisions.items():
            part, key = name.split(".")
            config = replace(config, **{part: replace(getattr(config, part), **{key: value})})
        return config

    @property
    def undecided(self) -> list[str]:
        """Dotted names of the options that are decided when the run starts."""
        names = ["train.compile"] if self.train.compile == "auto" else []
        stores = self.teacher is not None and self.teacher.store is not False
        names += ["teacher.store"] if self.teacher is not None and self.teacher.store == "auto" else []
        names += ["data.views"] if self.data.views is None and (stores or self.shares_views) else []
        return names


def with_options(recipe: Mapping[str, Any], options: Mapping[str, Any], method: str = DEFAULT_METHOD) -> dict[str, Any]:
    """A recipe with a user's options over it.

    A different method or hint starts from its own defaults, not from the recipe's settings. The published accuracy is
    dropped if the options change the experiment.

    Args:
        recipe: options, as in a recipe.
        options: the user's options, in the same form.
        method: the method if neither names one.

    Raises:
        ConfigError: a part is not a mapping, or data.root is given with the dataset digits.
    """
    recipe, options = new_options(with_members(recipe)), new_options(with_members(options))
    own, parts, another = {}, {}, False
    for part, default in (("method", method), ("hint", None)):
        (before, below), (now, above) = named(part, recipe), named(part, options)
        before = before or default
        name = (now or default) if _says_name(part, options) else before
        another |= name != before
        own[part] = {**below, "name": before}
        parts[part] = {**merged({} if name != before else below, above), "name": name}
    check_root(_part("data", options), below=_part("data", recipe))
    tree = {
        **merged(
            without_teacher(without_schedule(recipe, options), options),
            {key: value for key, value in options.items() if key not in parts},
        ),
        **parts,
    }
    if "published" in recipe and "published" not in options and (another or _changes({**recipe, **own}, tree)):
        tree["published"] = None
    return tree


def _known() -> list[str]:
    """The dotted names of all options that do not depend on a method or hint."""
    parts = {"data": DataSettings, "student": StudentSettings, "teacher": TeacherSettings, "train": TrainSettings}
    several = [f"teacher.{name}" for name in options_of(EnsembleSettings)]
    return [
        *(*_BESIDE, *PARTS, *several),
        *(f"{part}.{name}" for part, kind in parts.items() for name in options_of(kind)),
    ]


def find_method(name: str) -> type[StudentTask]:
    """The task class of a method: a name, or my_module:MyTask.

    Raises:
        ConfigError: there is no such class.
    """
    return find_class(name, METHODS, StudentTask, "method")


def find_hint(name: str) -> type[Hint]:
    """The class of a feature method: a name, or my_module:MyHint.

    Raises:
        ConfigError: there is no such class.
    """
    return find_class(name, HINTS, Hint, "hint")


def has_teacher(task: type[StudentTask]) -> bool:
    """Whether a method learns from a teacher."""
    return "teacher" in inspect.signature(task).parameters


def named(part: str, tree: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The name in a tree's "method" or "hint", and the other options there.

    Raises:
        ConfigError: the part is neither a name nor a mapping.
    """
    found = tree.get(part)
    if found is None or isinstance(found, str):
        return (None if found in (None, "null", "None") else str(found)), {}
    options = dict(_part(part, tree))
    name = options.pop("name", None)
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{part}.name must be text, not {name!r}")
    if name == "":
        raise ConfigError(f"--{part} needs a name: one of {', '.join(METHODS if part == 'method' else HINTS)}")
    return (None if name in (None, "null", "None") else str(name)), options


def _says_name(part: str, tree: Mapping[str, Any]) -> bool:
    """Whether a tree names a method or hint, or sets it to none."""
    return part in tree and (not isinstance(tree[part], Mapping) or "name" in tree[part])


def _part(part: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a tree; a missing part is empty.

    Raises:
        ConfigError: it is not a mapping.
    """
    found = tree.get(part)
    if is_dataclass(found) and not isinstance(found, type):
        return {entry: getattr(found, entry) for entry in found.__dataclass_fields__}
    if not isinstance(found, Mapping | None):
        raise ConfigError(f"{part} must be a mapping of options, not {found!r}")
    return found or {}


def _method_options(name: str, task: type[StudentTask], tree: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a method's task with their values, including defaults, which a later version may change."""
    known = options_of_method(task)
    for key in tree:
        if key not in known:
            others = [each for each, other in METHODS.items() if key in options_of_method(other)]
            if others:
                raise ConfigError(f"{name} has no option method.{key}; these methods have it: {', '.join(others)}")
    given = read_options(task, tree, "method", OF_METHOD)
    return task.with_defaults({key: given.get(key, option.default) for key, option in known.items()})


def options_of_method(task: type[StudentTask]) -> dict[str, Option]:
    """The options of a method, by name."""
    return options_of(task, OF_METHOD)


def _hint_options(name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    hint = find_hint(name)
    given = read_options(hint, tree, "hint", OF_HINT)
    return {key: given.get(key, option.default) for key, option in options_of(hint, OF_HINT).items()}


def _located(weights: str | None, runs: Path, seed: int) -> str | None:
    """The absolute path of weights. A reference to a recipe becomes its run directory."""
    if weights is None:
        return None
    recipe = referred(weights)
    return str((user_path(weights) if recipe is None else run_folder(recipe, runs, seed)).absolute())


def _with_recorded_name(teacher: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of a teacher with the name that its file of weights records, if they give weights and no name.

    A name of user code or of the hub is left out, because a file of weights alone is no reason to import a module or to
    use the network.
    """
    weights = teacher.get("weights")
    if "name" in teacher or not isinstance(weights, str) or referred(weights) is not None:
        return teacher
    path = user_path(weights)
    path = path / "student.safetensors" if path.is_dir() else path
    recorded = read_about(path).get("model") if path.is_file() else None
    left_out = recorded is None or is_user_code(recorded) or is_on_hub(recorded)
    return teacher if left_out else {**teacher, "name": recorded}


def check_root(data: Mapping[str, Any], below: Mapping[str, Any]) -> None:
    """Raise an error if data.root is given over the dataset digits, which does not read it.

    Args:
        data: options of the data.
        below: the options that they override.
    """
    if below.get("name") == "digits" and data.get("root") is not None and "name" not in data:
        raise ConfigError(
            f"data.root {data['root']} is not read, because the digits are part of scikit-learn; give --data.name"
            " folder for images in class folders, or another dataset of `disk-kd list datasets`"
        )


def measurable(below: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options of the data, for a measurement on other data: those of data without labels are left out.

    Args:
        below: the run's options.
        data: options that name other data, or none.
    """
    others = below.get("name") == "none" and not {"name", "root"}.isdisjoint(data)
    left = {"name", "classes", *(name for name in below if "unlabelled" in name)} if others else set()
    return {name: value for name, value in below.items() if name not in left}


def measured_on(below: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the data that override a recipe's for a measurement, so that only those of `measurable` remain.

    Args:
        below: the recipe's options.
        data: options that name other data, or none.
    """
    left = below.keys() - measurable(below, data).keys()
    if not left:
        return dict(data)
    defaults = DataSettings()
    return {name: getattr(defaults, name) for name in left} | dict(with_name(data))


def with_name(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of the data with the name of the dataset, which their paths tell if they name none (`dataset_name`)."""
    return data if data.get("name") is not None else {**data, "name": dataset_name(data)}


def _changes(recipe: Mapping[str, Any], tree: Mapping[str, Any]) -> bool:
    """Whether options change the experiment of a recipe, so that its published accuracy no longer applies.

    The seed, the folder of the data, and other files of weights do not change the experiment.
    """
    old, new = (RunConfig.from_tree(each).identity for each in (recipe, tree))
    same = {"train.seed", "data.root"}
    same |= {name for name in ("student.weights", "teacher.weights") if old.get(name) and new.get(name)}
    return any(old.get(name) != new.get(name) for name in (old.keys() | new.keys()) - same)
