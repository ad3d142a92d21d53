"""The configuration of a run: made from a mapping, written back as YAML, and the one truth about the run.

The options of a method are the keywords of its task's constructor; they are not written down twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from disk_kd.data.settings import DataSettings
from disk_kd.errors import ConfigError, shown
from disk_kd.files import user_path
from disk_kd.hints import HINTS, Hint
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
from disk_kd.plugins import find_class, import_modules
from disk_kd.recipe import (
    CONFIG,
    PARTS,
    WRITTEN_BY,
    imports_of,
    load_recipe,
    recipe_name,
    referred,
    run_folder,
    without_schedule,
)
from disk_kd.tasks import METHODS, StudentTask
from disk_kd.teacher.settings import TeacherSettings
from disk_kd.training.settings import TrainSettings

DEFAULT_METHOD = "kd"
"""What `distill` runs where no method is named: it led or was level with the leader in docs/results.md."""

ENVIRONMENT = frozenset(
    f"{part}.{name}"
    for part, settings in (("data", DataSettings), ("teacher", TeacherSettings), ("train", TrainSettings))
    for name in environment_names(settings)
)
"""Dotted names of the options that do not change a run's result."""

_BESIDE = {"import": list[str] | str, "description": str, "published": float | None, "output": Path | None}
"""The other keys of a recipe."""
OF_METHOD, OF_HINT = frozenset({"student", "teacher", "steps_per_epoch"}), frozenset({"context"})
"""Keywords of a task's and a hint's constructor that a run gives."""


@dataclass(frozen=True)
class RunConfig:
    """All of a run.

    Attributes:
        data, student, teacher, train: its settings; `teacher` is None where the method has none.
        method: a name of `disk_kd.tasks.METHODS`, or my_module:MyTask.
        method_options: keywords of the method's task, each with its value.
        hint: a name of `disk_kd.hints.HINTS`, or my_module:MyHint; None: there is none.
        hint_options: keywords of the hint that were given.
        imports: modules that are imported first.
        description: what the run is for.
        published: top-1 that a paper reports, in percent.
        output: the run directory.
        runs: the folder of run directories, which holds the teacher store.
        resume: whether an unfinished run goes on.
        shares_views: whether it is a run of a comparison, whose rows see the same images (`settle_views`).
    """

    data: DataSettings
    student: StudentSettings
    teacher: TeacherSettings | None
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
        """A configuration from a mapping, such as a recipe or a run's config.yaml holds.

        Paths become absolute, so that the run can be repeated from another folder; weights recipe:NAME become the run
        directory of that recipe.

        Args:
            tree: options by part: data, student, teacher, method, hint, train; and import, description, published and
                output. A part that is left out has its defaults. `method` and `hint` say their `name`, or are one.
            runs: folder of run directories.
            name: of the run's folder in `runs`, where the tree gives no output; by default STUDENT-METHOD.
            resume: whether an unfinished run goes on.
            shares_views: as the attribute.

        Raises:
            ConfigError: an unknown option, method, hint or recipe, or a value of the wrong kind or out of range.
        """
        for key in tree:
            if key not in (*PARTS, *_BESIDE):
                raise ConfigError(f"unknown option {shown(str(key))}; {nearest_option(str(key), _known())}")
        tree = new_options(tree)
        imports = imports_of(tree)
        import_modules(imports)
        beside = {key: read_value(kind, tree[key], key) for key, kind in _BESIDE.items() if key in tree}
        method, method_tree = named("method", tree)
        hint, hint_tree = named("hint", tree)
        method = method or DEFAULT_METHOD
        task = find_method(method)
        if hint is None and hint_tree:
            raise ConfigError(
                f"hint.{next(iter(hint_tree))} is an option of a feature method; give --hint NAME too:"
                f" {', '.join(HINTS)}"
            )
        data_tree = _part("data", tree)
        check_root(data_tree)
        data = read(DataSettings, data_tree, "data")
        train = read(TrainSettings, _part("train", tree), "train")
        student = read(StudentSettings, _part("student", tree), "student")
        teacher = read(TeacherSettings, _part("teacher", tree), "teacher")
        learns = has_teacher(task) or hint is not None
        options = _method_options(method, task, method_tree)
        runs = user_path(runs)
        output = beside.get("output") or runs / (name or f"{student.name}-{method}") / f"seed{train.seed}"
        return cls(
            data=replace(data, root=None if data.root is None else user_path(data.root).absolute()),
            student=replace(student, weights=_located(student.weights, runs, train.seed)),
            teacher=replace(teacher, weights=_located(teacher.weights, runs, 0)) if learns else None,
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
        """The run of a recipe's file with options over it.

        Args:
            path: of the recipe; None: there are options alone.
            options: as a recipe holds them.
            command: "train", which is always cross-entropy, "distill" or "store-teacher".
            runs, resume, shares_views: as of `from_tree`.

        Raises:
            ConfigError: as `from_tree`.
        """
        recipe = {} if path is None else load_recipe(path)
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
        """The configuration that a run directory holds.

        Raises:
            ConfigError: its config.yaml is not one of this version.
        """
        tree = load_recipe(folder / CONFIG)
        return cls.from_tree({**tree, "output": str(folder)}, runs=runs, resume=resume)

    def to_tree(self) -> dict[str, Any]:
        """The mapping that `from_tree` makes the same run of: no `runs`, `resume` and `shares_views`."""
        parts = {part: getattr(self, part) for part in ("data", "student", "teacher")}
        tree: dict[str, Any] = {name: asdict(part) for name, part in parts.items() if part is not None}
        tree["method"] = {"name": self.method, **self.method_options}
        tree["hint"] = {"name": self.hint, **self.hint_options}
        tree["train"] = asdict(self.train)
        beside = {"import": self.imports, "description": self.description, "published": self.published}
        return plain({**tree, **beside, "output": self.output})

    def to_yaml(self) -> str:
        """The run's config.yaml, which alone repeats the run."""
        return (
            f"{WRITTEN_BY}{version('disk-kd')}\n{yaml.safe_dump(self.to_tree(), sort_keys=False, allow_unicode=True)}"
        )

    def decided(self, decisions: Mapping[str, Any]) -> RunConfig:
        """The same with decisions in the place of what was left open.

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
        """Dotted names of the options that the run decides on as it begins."""
        names = ["train.compile"] if self.train.compile == "auto" else []
        stores = self.teacher is not None and self.teacher.store is not False
        names += ["teacher.store"] if self.teacher is not None and self.teacher.store == "auto" else []
        names += ["data.views"] if self.data.views is None and (stores or self.shares_views) else []
        return names


def with_options(recipe: Mapping[str, Any], options: Mapping[str, Any], method: str = DEFAULT_METHOD) -> dict[str, Any]:
    """A recipe with a user's options over it.

    A method or hint that is another than the recipe's brings its own defaults: the recipe's settings of the other are
    left out. The number that a paper published stays with what it was published for.

    Args:
        recipe: options, as a recipe holds them.
        options: likewise.
        method: where neither names one.

    Raises:
        ConfigError: a part is no mapping, or data.root is given to the digits, which have none.
    """
    recipe, options = new_options(recipe), new_options(options)
    own, parts, another = {}, {}, False
    for part, default in (("method", method), ("hint", None)):
        (before, below), (now, above) = named(part, recipe), named(part, options)
        before = before or default
        name = (now or default) if _says_name(part, options) else before
        another |= name != before
        own[part] = {**below, "name": before}
        parts[part] = {**merged({} if name != before else below, above), "name": name}
    check_root(_part("data", options), below=_part("data", recipe))
    recipe = without_schedule(recipe, options)
    tree = {**merged(recipe, {key: value for key, value in options.items() if key not in parts}), **parts}
    if "published" in recipe and "published" not in options and (another or _changes({**recipe, **own}, tree)):
        tree["published"] = None
    return tree


def _known() -> list[str]:
    """The dotted names of options, as far as they do not hang on a method or hint."""
    parts = {"data": DataSettings, "student": StudentSettings, "teacher": TeacherSettings, "train": TrainSettings}
    return [*_BESIDE, *PARTS, *(f"{part}.{name}" for part, kind in parts.items() for name in options_of(kind))]


def find_method(name: str) -> type[StudentTask]:
    """The task of a method's name, or of my_module:MyTask.

    Raises:
        ConfigError: there is no such class.
    """
    return find_class(name, METHODS, StudentTask, "method")


def find_hint(name: str) -> type[Hint]:
    """The hint of a feature method's name, or of my_module:MyHint.

    Raises:
        ConfigError: there is no such class.
    """
    return find_class(name, HINTS, Hint, "hint")


def has_teacher(task: type[StudentTask]) -> bool:
    """Whether a method learns from a teacher."""
    return "teacher" in inspect.signature(task).parameters


def named(part: str, tree: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The name that a tree gives to its "method" or "hint", and the other options there.

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
    """Whether a tree names a method or hint, or says that there is none."""
    return part in tree and (not isinstance(tree[part], Mapping) or "name" in tree[part])


def _part(part: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a tree; none is empty.

    Raises:
        ConfigError: it is no mapping.
    """
    found = tree.get(part)
    if is_dataclass(found) and not isinstance(found, type):
        return {entry: getattr(found, entry) for entry in found.__dataclass_fields__}
    if not isinstance(found, Mapping | None):
        raise ConfigError(f"{part} must be a mapping of options, not {found!r}")
    return found or {}


def _method_options(name: str, task: type[StudentTask], tree: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a method's task, with the values that a later version may not have as defaults."""
    known = options_of_method(task)
    for key in tree:
        if key not in known:
            others = [each for each, other in METHODS.items() if key in options_of_method(other)]
            if others:
                raise ConfigError(f"method.{key} is no option of {name}; it is one of --method {', '.join(others)}")
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
    """The absolute path of weights; a reference to a recipe is its run directory."""
    if weights is None:
        return None
    recipe = referred(weights)
    return str((user_path(weights) if recipe is None else run_folder(recipe, runs, seed)).absolute())


def check_root(data: Mapping[str, Any], below: Mapping[str, Any] = {}) -> None:
    """Refuse a folder of data that is given beside no name: the digits, which are the default, would not read it.

    Args:
        data: options of the data.
        below: those that they are laid over.
    """
    digits = data.get("name", below.get("name", "digits")) == "digits"
    if digits and data.get("root") is not None and "name" not in data:
        raise ConfigError(
            f"data.root {data['root']} is not read, because the digits are part of scikit-learn; give --data.name"
            " folder for images in class folders, or another dataset of `disk-kd list datasets`"
        )


def _changes(recipe: Mapping[str, Any], tree: Mapping[str, Any]) -> bool:
    """Whether options make another experiment of a recipe, so that the number published for it is not theirs.

    The seed, the place of the data, and other weights where the recipe has some leave it what it is.
    """
    old, new = (dotted(RunConfig.from_tree(each).to_tree()) for each in (recipe, {**tree, "published": None}))
    same = {"train.seed", "data.root", *ENVIRONMENT}
    same |= {name for name in ("student.weights", "teacher.weights") if old.get(name) and new.get(name)}
    return any(
        old.get(name) != new.get(name)
        for name in old.keys() | new.keys()
        if name.partition(".")[0] in PARTS and name not in same
    )
