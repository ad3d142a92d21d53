"""The configuration of a run: one frozen dataclass a part, read from recipes and the command line.

The options of a method are the keywords of its task's constructor; they are not written down twice.
"""

from __future__ import annotations

import inspect
import math
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from disk_kd.data import Augment, Mix, TimmAugment
from disk_kd.errors import ConfigError, DiskKDError, nearest
from disk_kd.files import read_yaml, user_path
from disk_kd.hints import HINTS, Hint
from disk_kd.models.about import read_about
from disk_kd.options import (
    HelpFormatter,
    dotted,
    environment,
    environment_names,
    kinds_in_words,
    nearest_option,
    said_plainly,
    type_in_words,
)
from disk_kd.plugins import IMPORT_HELP, find_class, import_modules
from disk_kd.tasks import METHODS, StudentTask
from disk_kd.train.settings import OF_SCHEDULES, TrainSettings

Settings = TypeVar("Settings")

RECIPES = resources.files("disk_kd") / "recipes"

_PARTS = ("data", "student", "teacher", "method", "hint", "train")

DEFAULT_METHOD = "kd"
"""What `distill` runs where no method is named: it led or was level with the leader in docs/results.md."""

_WRITTEN_BY = "# disk-kd "
"""What a run's config.yaml begins with, before the version."""

_SET_BY_RUNS = {"num_classes", "in_chans", "weights", "pretrained", "checkpoint_path"}
_SHORT = {"--method": "--method.name", "--hint": "--hint.name", "--views": "--data.views"}

_RECIPE_HELP = (
    "RECIPE is a name of `disk-kd list recipes`, a YAML file or a run's config.yaml; options override it."
    " --print_config prints the resolved recipe and does nothing else."
)

_UNION = re.compile(r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*Given value: ?")
"""How jsonargparse refuses a value for an option of several kinds: with each attempt, of which the kinds are kept."""
_CLASS = re.compile(r"Namespace\(class_path='[\w.]*?(\w+)', init_args=Namespace\((.*?)\).*?\)")
"""How it shows the arguments of a class."""

_DESCRIPTIONS = {
    "train": f"Train a model with cross-entropy: a teacher, or a baseline. {_RECIPE_HELP}",
    "distill": f"Train a student, by default from a teacher. {_RECIPE_HELP} --method NAME also chooses whose options"
    " this help shows.",
    "store-teacher": "Run the teacher of a recipe over all views of its training data and keep the outputs that the"
    f" method reads, for later runs of distill. {_RECIPE_HELP} Give the views with --views V; killed, the same"
    " command goes on. A sample takes 2 bytes per class and view and 4 more (CIFAR-100: 9 MB a view), with"
    " teacher.store_top_k K 4 K + 6; feature maps and pooled features 2 bytes per number.",
}


@dataclass(frozen=True)
class DataConfig:
    """The dataset and its augmentation.

    Args:
        name: a dataset of `disk-kd list datasets`, or a timm reader such as hfds/user/name.
        root: folder of the data, for datasets that are not embedded.
        image_size: side in pixels that images are brought to; null: as they are.
        download: allow the dataset to be downloaded to `root`.
        validation: share of the training samples, per class, that selects the checkpoint.
        limit_train: keep only so many training samples, per class alike; null: all.
        limit_test: keep only so many test samples, per class alike and the same ones for every seed; null: all.
        label_noise: share of training labels to replace by a wrong one.
        split_seed: of the validation split, the limit and the noise.
        views: number of different augmentations of a sample, met in turn; null: a new one each pass.
        view_seed: of those augmentations, so that runs of several seeds share a teacher's stored outputs.
        augment: what is done to the images, in memory or streamed.
        crop_pct: share of the shorter side of a file that evaluation sees, around its centre.
        grey_bits: scale grey images of 16 bits to 8. It is the number of bits b, 9 to 16, that their values use: 16 for
            the whole range, 12 for many cameras and scanners; a value v becomes 255 v / (2^b - 1). null: refuse them.
        stream: read image files as they are needed, instead of into memory; auto: where data.timm is enabled, or they
            would take more than half of the free memory.
        timm: timm's augmentation of streamed training files.
        workers: processes that decode streamed files; null: one for each core that this process has.
        skip_unreadable: leave out damaged image files, with a warning, instead of refusing them.
        mix: mixup and cutmix of training batches.
    """

    name: str = "digits"
    root: Path | None = None
    image_size: int | None = None
    download: bool = environment(False)
    validation: float = 0.1
    limit_train: int | None = None
    limit_test: int | None = None
    label_noise: float = 0.0
    split_seed: int = 0
    views: int | None = None
    view_seed: int = 0
    augment: Augment = field(default_factory=Augment)
    crop_pct: float = 1.0
    grey_bits: int | None = None
    stream: Literal["auto"] | bool = environment("auto")
    timm: TimmAugment = field(default_factory=TimmAugment)
    workers: int | None = environment(None)
    skip_unreadable: bool = False
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        ranges = {"image_size": (1, 10_000), "views": (1, 1_000_000), "grey_bits": (9, 16)}
        for name, (least, most) in (ranges | dict.fromkeys(("limit_train", "limit_test"), (1, math.inf))).items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                upper = f"from {least} to {most:,}" if most < math.inf else f"at least {least}"
                raise ConfigError(f"data.{name} must be {upper}, or null, not {value}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"data.workers must be at least 0 or null, not {self.workers}")


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Args:
        name: a model of timm or of this package (`disk-kd list models`), or my_module:make, a function or class of
            yours that makes one.
        weights: a file of weights, a run directory, or recipe:NAME for the result of that recipe.
        pretrained: let timm load, and if need be download, its pretrained weights; those of cifar_resnet10_l and
            cifar_resnet10_s, for CIFAR-100, are part of this package.
        options: further keywords of the model; mean and std, a number a channel, say that it takes (x - mean) / std of
            pixels x in [0, 1], in the place of what it says itself.
    """

    name: str
    weights: str | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"a model needs a name of `disk-kd list models`, not {self.name!r}")
        for key in self.options:
            if not isinstance(key, str) or key in _SET_BY_RUNS:
                raise ConfigError(
                    f"options of a model must be keywords of its own, not {key!r}; the data gives num_classes and"
                    " in_chans, weights and pretrained stand beside options"
                )
        if ("mean" in self.options) != ("std" in self.options):
            raise ConfigError(f"options of a model must give mean and std, or neither, not {self.options}")


@dataclass(frozen=True)
class StudentConfig(ModelConfig):
    """The model to train; weights are where it starts from."""

    name: str = "cifar_resnet10_s"


@dataclass(frozen=True)
class TeacherConfig(ModelConfig):
    """The trained model to learn from; a method without a teacher leaves it alone.

    Args:
        image_size: side in pixels that the teacher sees; null: of the images that it learned from, where the file of
            its weights says it, else the student's images as they are.
        precision: fp32, or autocast to bf16 or fp16; auto: bf16 on an accelerator, else fp32.
        store: run the teacher once over all data.views and keep its outputs in RUNS/teacher-store, for this run and all
            others of the same teacher, data and augmentation: 2 bytes per class, sample and view (feature maps, where
            the method reads them, 2 bytes per number). false: the teacher runs at each step. auto: stored where views
            are met again or take at most 1 GiB in all, and the disk has room; without data.views, each pass then has
            a view of its own as far as that goes. What was decided stands in the run's config.yaml.
        store_top_k: keep only so many of a sample's largest logits, 4 bytes each, and the sum of the others; for a
            thousand classes and more. `disk-kd store-teacher` states the error. null: all logits.
    """

    name: str = "cifar_resnet10_l"
    image_size: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    store: Literal["auto"] | bool = environment("auto")
    store_top_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"teacher.image_size must be at least 1 or null, not {self.image_size}")
        if self.store_top_k is not None and self.store_top_k < 1:
            raise ConfigError(f"teacher.store_top_k must be at least 1 or null, not {self.store_top_k}")


ENVIRONMENT = frozenset(
    f"{part}.{name}"
    for part, settings in (("data", DataConfig), ("teacher", TeacherConfig), ("train", TrainSettings))
    for name in environment_names(settings)
)
"""Dotted names of the options that do not change a run's result."""


@dataclass(frozen=True)
class RunConfig:
    """All of a run."""

    command: str
    data: DataConfig
    student: StudentConfig
    teacher: TeacherConfig | None
    method: str
    method_options: dict[str, Any]
    hint: str | None
    hint_options: dict[str, Any]
    train: TrainSettings
    description: str
    published: float | None
    output: Path
    runs: Path
    resume: bool
    quiet: bool
    log_json: bool
    text: str
    """The resolved recipe, as `config.yaml` holds it."""
    shares_views: bool = False
    """Whether it is a run of a comparison, whose rows see the same images (`disk_kd.build.settle_views`)."""


def parse_run(command: str, arguments: Sequence[str]) -> RunConfig:
    """The configuration that `disk-kd COMMAND ARGUMENTS` asks for: defaults, then the recipe, then the options.

    Args:
        command: "train" (always cross-entropy) or "distill".
        arguments: [RECIPE] and options, as on the command line.

    Raises:
        ConfigError: an unknown recipe, key or method, or a value of the wrong kind or out of range.
    """
    arguments = _plain_resume(list(arguments))
    check_given(arguments)
    for short, option in _SHORT.items():
        arguments = [re.sub(rf"^{short}(?=$|=)", option, argument) for argument in arguments]
    recipe_path = find_recipe(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else None
    recipe = {} if recipe_path is None else load_recipe(recipe_path)
    imports, arguments = take_imports(arguments)
    recipe["import"] = list(dict.fromkeys([*imports_of(recipe), *imports]))
    import_modules(recipe["import"])
    own_method = "ce" if command == "train" else DEFAULT_METHOD
    named = {part: (part_name(part, recipe, []), part_name(part, recipe, arguments)) for part in ("method", "hint")}
    method, hint = named["method"][1] or own_method, named["hint"][1]
    others = {"method": method != (named["method"][0] or own_method), "hint": hint != named["hint"][0]}
    if command == "train" and (method != "ce" or hint is not None):
        raise ConfigError(f"disk-kd train is for cross-entropy; run {hint or method} with disk-kd distill")
    lost = [a.partition("=")[0] for a in arguments if a.startswith("--hint.") and not a.startswith("--hint.name")]
    if hint is None and lost:
        raise ConfigError(f"{lost[0]} is an option of a feature method; give --hint NAME too: {', '.join(HINTS)}")
    for part in (part for part, other in others.items() if other and part in recipe):
        recipe = recipe | {part: {"name": named[part][1]}}  # it brings its own defaults, not another's settings
    others["schedule"] = _drop_schedule(recipe, arguments)
    if hint is None and not has_teacher(find_method(method)):
        recipe.pop("teacher", None)
    parser = run_parser(command, method, hint)
    with _one_line_errors(parser):
        recipes_own = parser.parse_object(recipe, defaults=True)
        parsed = parser.parse_args(list(arguments), namespace=recipes_own.clone())
        _check_values(parsed)
        _check_null(parsed, parser)
        _check_root(parsed, recipe.get("data", {}), arguments)
        if parsed.published == recipes_own.published and (any(others.values()) or _changes(recipes_own, parsed)):
            parsed.published = None
        _expand_paths(parsed)
        values = parser.instantiate(parsed)
    runs = parsed.runs = user_path(parsed.runs)
    output = parsed.output = user_path(_output(parsed, recipe_path, method))
    # Absolute, so that the run can be repeated from another folder.
    if parsed.data.root is not None:
        parsed.data.root = user_path(parsed.data.root).absolute()
    for part in ("student", "teacher"):
        if part in parsed and parsed[part].weights is not None:
            weights = resolve_weights(parsed[part].weights, part, runs, parsed.train.seed)
            parsed[part].weights = str(user_path(weights).absolute())
    for name in ("runs", "resume", "quiet", "log_json"):
        parsed.pop(name)
    hint_options = {} if hint is None else vars(values.hint)
    hint_options.pop("name", None)
    options = vars(values.method)
    options.pop("name")
    options = find_method(method).with_defaults(options)
    for name, value in options.items():
        if parsed.method[name] is None:
            parsed.method[name] = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
    return RunConfig(
        command=command,
        data=values.data,
        student=values.student,
        teacher=values.get("teacher"),
        method=method,
        method_options=options,
        hint=hint,
        hint_options=hint_options,
        train=values.train,
        description=values.description,
        published=values.published,
        output=output,
        runs=runs,
        resume=values.resume,
        quiet=values.quiet,
        log_json=values.log_json,
        text=f"{_WRITTEN_BY}{version('disk-kd')}\n{parser.dump(parsed, skip_unset=False)}",
    )


def _expand_paths(options: Namespace) -> None:
    """Put the home in the place of ~ in the folder of the data and in paths of weights."""
    if options.data.root is not None:
        options.data.root = user_path(options.data.root)
    for part in ("student", "teacher"):
        weights = options[part].weights if part in options else None
        if weights is not None and recipe_of(weights) is None:
            options[part].weights = str(user_path(weights))


def _drop_schedule(recipe: dict[str, Any], arguments: Sequence[str]) -> bool:
    """Where another schedule than the recipe's is named, take that one's settings out of the recipe.

    Returns:
        Whether another is named.
    """
    named = _given("train.schedule", arguments)
    train = recipe.get("train") or {}
    if named is None or named == train.get("schedule", TrainSettings.schedule):
        return False
    recipe["train"] = {name: value for name, value in train.items() if name not in ("schedule", *OF_SCHEDULES)}
    return True


def _given(option: str, arguments: Sequence[str]) -> str | None:
    """The value that arguments give an option last; None where they do not."""
    value = None
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        name, equals, own = argument.partition("=")
        if name == f"--{option}":
            value = own if equals else following
    return value


def _changes(before: Namespace, after: Namespace) -> bool:
    """Whether options make another experiment of a recipe, so that the number published for it is not theirs.

    The seed, the place of the data, and other weights where the recipe has some leave it what it is.
    """
    old, new = (dotted(namespace.as_dict()) for namespace in (before, after))
    same = {"train.seed", "data.root", *ENVIRONMENT}
    same |= {name for name in ("student.weights", "teacher.weights") if old.get(name) and new.get(name)}
    return any(
        old.get(name) != new.get(name)
        for name in old.keys() | new.keys()
        if name.partition(".")[0] in _PARTS and name not in same
    )


def _check_root(options: Namespace, recipe: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Refuse a folder of data that is given beside no name: the digits, which are the default, would not read it.

    Args:
        options: of the run.
        recipe: its part `data`.
        arguments: as on the command line.

    Raises:
        ConfigError: the folder is given later than the name, or the name nowhere.
    """
    said = {argument.partition("=")[0] for argument in arguments}
    by_argument = "--data.root" in said
    named = "--data.name" in said or (not by_argument and "name" in recipe)
    if options.data.name == "digits" and (by_argument or "root" in recipe) and options.data.root and not named:
        raise ConfigError(
            f"data.root {options.data.root} is not read, because the digits are part of scikit-learn; give --data.name"
            " folder for images in class folders, or another dataset of `disk-kd list datasets`"
        )


def _check_values(options: Namespace) -> None:
    """Refuse what no option can mean.

    Raises:
        ConfigError: a switch is neither true nor false, a number is NaN, or a whole number that is no seed takes over
            32 bits.
    """
    for name in ("resume", "quiet", "log_json"):
        if type(options.get(name, False)) is not bool:
            raise ConfigError(f"{name} must be true or false, not {options[name]!r}")
    for name, value in dotted(options.as_dict()).items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and math.isnan(number):
                raise ConfigError(f"{name} must be a number, not {value}")
            if isinstance(number, int) and abs(number) >= 2**31 and not name.endswith("seed"):
                raise ConfigError(f"{name} is too large: {value}; give a number below 2^31")


def _check_null(options: Namespace, parser: ArgumentParser) -> None:
    """Raises ConfigError where a recipe has null for an option that must have a value."""
    values = dotted(options.as_dict())
    for action in parser._actions:
        kind = getattr(action, "_typehint", action.type)
        if kind in (int, float, str, bool, Path) and action.dest in values and values[action.dest] is None:
            article = "a " if kind in (int, float, Path) else ""
            needed = f"{article}{type_in_words(kind)}"
            raise ConfigError(f"{action.dest} must be {needed}, not null; leave it out for the default")


def check_given(arguments: Sequence[str]) -> None:
    """Raises ConfigError where an option that names a file or folder is given without one."""
    for argument in arguments:
        if argument in ("--output=", "--runs=", "--data.root=", "--student.weights=", "--teacher.weights="):
            raise ConfigError(f"{argument} names nothing; give a path after it, or leave it out")


def take_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What --import names, once or several times, as a module or a list of them; and the other arguments.

    Raises:
        ConfigError: it names nothing.
    """
    imports, others, rest = [], [], iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option != "--import":
            others.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("-"):
            raise ConfigError("--import needs a module of yours: --import my_module")
        try:
            imports += imports_of({"import": yaml.safe_load(value)})
        except yaml.YAMLError:
            raise ConfigError(f"--import must be a module or a list of modules, not {value}") from None
    return imports, others


def imports_of(recipe: Mapping[str, Any]) -> list[str]:
    """The modules that a recipe has imported.

    Raises:
        ConfigError: its key `import` holds something else.
    """
    value = recipe.get("import") or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"import must be a module or a list of modules, not {value!r}")
    return names


def named_in(recipe: Mapping[str, Any]) -> set[str]:
    """All that a recipe names which may be a user's own: models, the hint and modules."""
    parts = (recipe.get(part) or {} for part in ("student", "teacher", "hint"))
    return {*imports_of(recipe), *(str(part["name"]) for part in parts if part.get("name"))}


def _plain_resume(arguments: list[str]) -> list[str]:
    """--resume auto, as batch scripts know it, is --resume, which begins a run that was not begun."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [
        argument.replace("--resume=auto", "--resume")
        for before, argument in pairs
        if (before, argument) != ("--resume", "auto")
    ]


def settle(config: RunConfig, decisions: Mapping[str, Any]) -> RunConfig:
    """The configuration with decisions in the place of "auto", so that its text alone repeats the run.

    Args:
        config: of the run.
        decisions: values by dotted name, such as "train.compile".
    """
    if not decisions:
        return config
    tree = yaml.safe_load(config.text)
    for name, value in decisions.items():
        part, key = name.split(".")
        tree[part][key] = value
        config = replace(config, **{part: replace(getattr(config, part), **{key: value})})
    return replace(config, text=f"{config.text.splitlines()[0]}\n{yaml.safe_dump(tree, sort_keys=False)}")


def undecided(config: RunConfig) -> list[str]:
    """Dotted names of the options that a run decides on as it begins."""
    names = ["train.compile"] if config.train.compile == "auto" else []
    stores = config.teacher is not None and config.teacher.store is not False
    names += ["teacher.store"] if config.teacher is not None and config.teacher.store == "auto" else []
    names += ["data.views"] if config.data.views is None and (stores or config.shares_views) else []
    return names


@dataclass(frozen=True)
class EvaluationConfig:
    """What `disk-kd evaluate` measures."""

    weights: Path
    data: DataConfig
    model: ModelConfig | None
    split: str
    device: str
    json: bool
    named: frozenset[str] = frozenset()
    """What a file of weights may say it is of, among what is a user's own (`disk_kd.build.check_named`)."""


def parse_evaluation(arguments: Sequence[str]) -> EvaluationConfig:
    """The configuration of `disk-kd evaluate`.

    Args:
        arguments: RUN or WEIGHTS, then options; the data of a run directory is the default.

    Raises:
        ConfigError: an unknown option, or a value of the wrong kind.
    """
    parser = _parser(
        "disk-kd evaluate",
        "Measure a run's student, a file of weights, or a model whose weights are part of the package.",
        "disk-kd evaluate RUN|FILE [options]",
    )
    parser.add_argument("weights", type=Path, help="a run directory, a file, or cifar_resnet10_l or _s")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument("--model.name", type=str | None, default=None, help="needed where the weights do not say it")
    parser.add_argument("--model.options", type=dict[str, Any], default={}, help="its options, as of a student")
    parser.add_argument(
        "--split", type=Literal["test", "validation", "train"], default="test", help="what to measure on"
    )
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    _add_import(parser)
    imports, arguments = take_imports(arguments)
    named = set(imports)
    with _one_line_errors(parser):
        weights = user_path(parser.parse_args(list(arguments)).weights)
        run = weights if weights.is_dir() else weights.parent
        if weights.is_dir() or is_run_config(run / "config.yaml"):
            recipe = load_recipe(run / "config.yaml") if (run / "config.yaml").is_file() else {}
            parser.set_defaults(dotted({"data": recipe.get("data", {})}))
            if weights.is_dir():  # the user gave the run, not a file that lies there
                imports, named = imports + imports_of(recipe), named | named_in(recipe)
        if weights.is_file() and "crop_pct" in (about := read_about(weights)):
            parser.set_defaults({"data.crop_pct": about["crop_pct"]})
        parsed = parser.parse_args(list(arguments))
        _check_values(parsed)
        _check_root(parsed, {}, arguments)
        values = parser.instantiate(parsed)
    import_modules(imports)
    if values.model.options and not values.model.name:
        raise ConfigError("--model.options are of a model that --model.name names; give both, or neither")
    model = ModelConfig(values.model.name, options=values.model.options) if values.model.name else None
    named |= {model.name} if model else set()
    return EvaluationConfig(weights, values.data, model, values.split, values.device, values.json, frozenset(named))


def parse_settings(settings: type[Settings], prog: str, description: str, arguments: Sequence[str]) -> Settings:
    """Settings of a command whose options are the fields of a dataclass.

    Args:
        settings: the dataclass.
        prog: name of the command, for its help.
        description: likewise.
        arguments: as on the command line.

    Raises:
        ConfigError: an unknown option, or a value of the wrong kind or out of range.
    """
    check_given(arguments)
    parser = _parser(prog, description, f"{prog} [options]")
    parser.add_class_arguments(settings, None)
    with _one_line_errors(parser):
        values = vars(parser.parse_args(list(arguments)))
        return settings(**{name: user_path(v) if isinstance(v, Path) else v for name, v in values.items()})


def recipe_of(weights: str | None) -> str | None:
    """The recipe that a reference recipe:NAME names; None for any other weights."""
    return weights.removeprefix("recipe:") if weights is not None and weights.startswith("recipe:") else None


def resolve_weights(weights: str, part: str, runs: Path, seed: int) -> str:
    """The path behind weights as a recipe gives them.

    Args:
        weights: a path as it is, or recipe:NAME, the run of that recipe.
        part: "teacher": there is one for all seeds, of seed 0; "student": of the same seed as the run.
        runs: folder of run directories.
        seed: the run's.

    Raises:
        ConfigError: there is no such recipe.
    """
    recipe = recipe_of(weights)
    if recipe is None:
        return weights
    return str(runs / recipe_name(find_recipe(recipe)) / f"seed{0 if part == 'teacher' else seed}")


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


def run_parser(command: str, method: str, hint: str | None = None) -> ArgumentParser:
    """The parser of `train` and `distill`, with the options of one method, and of one hint if there is one."""
    task = find_method(method)
    parser = _parser(f"disk-kd {command}", _DESCRIPTIONS[command], f"disk-kd {command} [RECIPE] [options]")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(StudentConfig, "student")
    if has_teacher(task) or hint is not None:
        parser.add_class_arguments(TeacherConfig, "teacher")
    parser.add_argument(
        "--method.name",
        type=str,
        default=method,
        help=f"one of {', '.join(METHODS)}, or my_module:MyTask; without a name {DEFAULT_METHOD}",
    )
    parser.add_class_arguments(task, "method", skip={"student", "teacher", "steps_per_pass"}, instantiate=False)
    hints = f"one of {', '.join(HINTS)}, or my_module:MyHint; a loss between features, added to the method's"
    parser.add_argument("--hint.name", type=str | None, default=hint, help=hints)
    if hint is not None:
        parser.add_class_arguments(find_hint(hint), "hint", skip={"context"}, instantiate=False)
    parser.add_class_arguments(TrainSettings, "train")
    _add_import(parser)
    parser.add_argument("--description", type=str, default="", help="what the run is for")
    parser.add_argument("--published", type=float | None, default=None, help="top-1 that a paper reports, percent")
    parser.add_argument("--output", type=Path | None, default=None, help="run directory; default: RUNS/RECIPE/seedN")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run directories")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in the output directory, or begin it (also: auto)"
    )
    quiet = "print nothing but errors and, at the end, the folder that was made"
    parser.add_argument("--quiet", action="store_true", help=quiet)
    log = "print the log as lines of JSON, and nothing else (docs/report.md)"
    parser.add_argument("--log-json", action="store_true", help=log)
    return parser


def _parser(prog: str, description: str, usage: str) -> ArgumentParser:
    """A parser that shows all its options with --help-all; `disk_kd_command` answers --help with the common ones."""
    parser = ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--help-all", action="help", help="show every option")
    return parser


def _add_import(parser: ArgumentParser) -> None:
    """Tell of --import, which `take_imports` reads."""
    parser.add_argument("--import", type=list[str], default=[], metavar="MODULE", help=IMPORT_HELP)


def has_teacher(task: type[StudentTask]) -> bool:
    """Whether a method learns from a teacher."""
    return "teacher" in inspect.signature(task).parameters


def part_name(part: str, recipe: dict[str, Any], arguments: Sequence[str]) -> str | None:
    """The name of "method" or "hint", needed before the parser can know its options; None where none is given.

    Raises:
        ConfigError: the option has no value.
    """
    name = recipe.get(part, {}).get("name")
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == f"--{part}.name":
            name = value if equals else next(iter(arguments[index + 1 :]), "")
            if not name or name.startswith("-"):
                known = ", ".join(METHODS if part == "method" else HINTS)
                raise ConfigError(f"--{part} needs a name: one of {known}, or your own: my_module:MyClass")
    return None if name in (None, "null", "None") else str(name)


def _output(parsed: Namespace, recipe_path: Path | None, method: str) -> Path:
    """The run directory: as given, else that of the run that the recipe is from, else one named after the recipe."""
    if recipe_path is not None and recipe_path.name == "config.yaml" and parsed.resume:
        return recipe_path.parent
    if parsed.output is not None:
        return parsed.output
    name = f"{parsed.student.name}-{method}" if recipe_path is None else recipe_name(recipe_path)
    return parsed.runs / name / f"seed{parsed.train.seed}"


def recipe_name(path: Path) -> str:
    """A packaged recipe's name; of another file its stem."""
    root = Path(str(RECIPES))
    return str(path.relative_to(root).with_suffix("")) if path.is_relative_to(root) else path.stem


def _expected(union: re.Match[str]) -> str:
    """What jsonargparse says of each kind of a union, as one clause."""
    kinds = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>|typing\.Literal", r"\1", union[1]).replace("NoneType", "null")
    return f"expected {kinds_in_words(kinds)}, not "


@contextmanager
def _one_line_errors(parser: ArgumentParser) -> Iterator[None]:
    """Turn jsonargparse's errors into one line, with the nearest valid option where one is unknown."""
    try:
        yield
    except DiskKDError:
        raise
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())
        text = text.replace("Parser key", "option").replace("Expected a typing.Literal", "Expected one of ")
        text = _CLASS.sub(r"\1(\2)", text)
        unknown = re.search(
            r"(?:Group '([\w.]+)' does not accept option |unrecognized arguments: --|Option (?='))'?([\w.-]+)", text
        )
        if unknown is None:
            raise ConfigError(said_plainly(_UNION.sub(_expected, text))) from None
        option = ".".join(part for part in unknown.groups() if part)
        part, _, key = option.partition(".")
        others = [
            name for name, task in METHODS.items() if part == "method" and key in inspect.signature(task).parameters
        ]
        if others:
            raise ConfigError(
                f"{option} is no option of this method; it is one of --method {', '.join(others)}"
            ) from None
        if part == "teacher" and "teacher" not in parser.get_defaults():
            raise ConfigError(f"{option} is of methods with a teacher; give disk-kd distill --method kd") from None
        raise ConfigError(f"unknown option {option}; {nearest_option(option, parser.get_defaults().keys())}") from None


def list_recipes() -> dict[str, str]:
    """The packaged recipes by name, with their descriptions."""
    return {name: load_recipe(path).get("description", "") for name, path in _recipe_files().items()}


def _recipe_files() -> dict[str, Path]:
    paths = sorted(path for path in Path(str(RECIPES)).rglob("*.yaml") if not path.name.startswith("_"))
    return {recipe_name(path): path for path in paths}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, else a packaged recipe's name.

    Raises:
        ConfigError: neither exists.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    packaged = Path(str(RECIPES)) / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    raise ConfigError(
        f"no recipe {name!r}: give a YAML file, a run directory or a name of `disk-kd list recipes`;"
        f" {nearest(name, _recipe_files())}"
    )


def is_run_config(path: Path) -> bool:
    """Whether a file is the configuration that a run of this package wrote, not one of another program."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith(_WRITTEN_BY)
    except (OSError, UnicodeDecodeError):
        return False


def load_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's content, over that of the recipe that its key `base` names, if any (a path beside it).

    Args:
        path: of the YAML file.
        above: the recipes that this one is a base of.

    Raises:
        ConfigError: the file is not readable YAML, not a mapping, or its own base.
    """
    if path.resolve() in above:
        raise ConfigError(f"the recipe {path} is its own base")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} must be a mapping of options, not {type(content).__name__}")
    for part in _PARTS:
        if not isinstance(content.get(part, {}), dict):
            raise ConfigError(f"the key {part!r} of the recipe {path} must hold a mapping, not {content[part]!r}")
    base = content.pop("base", None)
    if base is None:
        return content
    below = load_recipe(path.parent / user_path(str(base)), (*above, path.resolve()))
    below.pop("published", None)  # it was published for the base
    for part in ("method", "hint"):
        names = [(options.get(part) or {}).get("name") for options in (below, content)]
        if None not in names and names[0] != names[1]:
            below.pop(part)
    if schedule := (content.get("train") or {}).get("schedule"):
        _drop_schedule(below, [f"--train.schedule={schedule}"])
    return _merge(below, content)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
