"""Settings of a probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from disk_kd.build import STUDENT
from disk_kd.config import check_root, measurable, with_name
from disk_kd.data.augment import Augment
from disk_kd.data.settings import DataSettings, with_absolute_paths
from disk_kd.errors import CheckpointError, ConfigError, nearest, shown
from disk_kd.files import user_path
from disk_kd.models.about import read_about
from disk_kd.options import merged, options_of, read
from disk_kd.plugins import import_modules
from disk_kd.recipe import CONFIG, find_recipe, imports_of, load_recipe, named_in, referred, run_folder
from disk_kd.teacher.settings import TeacherSettings

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class ProbeSettings:
    """The backbone, the data and the classifier of a probe.

    Args:
        teacher: The backbone. Its classifier, if it has one, is left out.
        data: The labelled images. data.views is the number of augmented views of each training image that the
            classifier learns from; null is one.
        grid: Values of C, the inverse strength of the regularisation. Among those whose accuracy on the validation
            split is within one standard error of the highest, the value with the lowest NLL is kept. Without a
            validation split give one value, or C is 0.01.
        output: Folder to write (default: RUNS/probe/BACKBONE).
        runs: Folder of run directories. It contains the teacher store.
        device: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one.
    """

    teacher: TeacherSettings
    data: DataSettings = field(default_factory=DataSettings)
    grid: tuple[float, ...] = GRID
    output: Path | None = None
    runs: Path = Path("runs")
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.grid or not all(0 < value < math.inf for value in self.grid):
            raise ConfigError(f"grid must list values of C above 0, not {list(self.grid)}; the default is {list(GRID)}")
        if self.teacher.classes is not None:
            raise ConfigError("a probe does not read the backbone's classes; leave out teacher.classes")
        plain = self.data.augment == Augment() and not self.data.timm.enabled
        if plain and (self.data.views or 1) > 1:
            raise ConfigError(
                f"the {self.data.views} views of each image are the same without augmentation; give --data.augment.flip"
                " true, or --views 1"
            )
        if self.data.mix.on or self.data.timm.repeats > 1:
            raise ConfigError("a probe needs each image with its own label; leave out data.mix and data.timm.repeats")

    @property
    def views(self) -> int:
        """Number of views of each training image."""
        return self.data.views or 1

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return self.output or self.runs / "probe" / self.teacher.name.replace("/", "-").replace(":", "-")


@dataclass(frozen=True)
class Request:
    """What `disk-kd probe` was asked for.

    Attributes:
        settings: the settings.
        imports: modules that were imported first.
        named: names of user code that a file of weights may refer to (`disk_kd.trained.check_named`).
    """

    settings: ProbeSettings
    imports: tuple[str, ...]
    named: frozenset[str]


def read_probe(words: tuple[str, ...], tree: Mapping[str, Any]) -> Request:
    """The settings of `disk-kd probe [RECIPE|RUN|FILE] [options]`.

    Of a recipe its data and its teacher are read. RUN or FILE is a trained student, which is the backbone; the data of
    the run is the default.

    Args:
        words: a recipe, a run directory or a file of weights, or nothing.
        tree: options by part: data, teacher, grid, output, runs, device and import.

    Raises:
        ConfigError: an unknown option or recipe, or a value of the wrong type or out of range.
        CheckpointError: the file of weights does not record its model.
    """
    if len(words) > 1:
        raise ConfigError(f"one recipe or run at a time, not {' and '.join(map(shown, words))}")
    options = dict(tree)
    imports = imports_of(options)
    options.pop("import", None)
    known = options_of(ProbeSettings)
    if unknown := next(iter(options.keys() - known.keys()), None):
        raise ConfigError(f"unknown option {shown(unknown)}; {nearest(unknown, known)}")
    below, trusted = _below(words[0]) if words else ({}, frozenset[str]())
    check_root(options.get("data", {}), below=below.get("data", {}))
    imports = [*imports_of(below), *imports]
    import_modules(imports)
    below.pop("import", None)
    below["data"] = measurable(below.get("data", {}), options.get("data", {}))
    below.get("data", {}).pop("views", None)  # of a run there is one for each epoch
    whole = merged(below, options)
    whole["data"] = with_name(whole.get("data", {}))
    if "name" not in whole.get("teacher", {}):
        raise ConfigError("no backbone: give --teacher.name NAME, a run directory, or a recipe that has a teacher")
    settings = read(ProbeSettings, {**whole, "data": with_name(whole.get("data", {}))})
    runs = user_path(settings.runs)
    teacher = _with_path(settings.teacher, runs)
    settings = replace(settings, runs=runs, data=with_absolute_paths(settings.data), teacher=teacher)
    typed = tree.get("teacher", {}).get("name")
    named = {*trusted, *imports} | ({str(typed)} if typed else set())
    return Request(settings, tuple(dict.fromkeys(imports)), frozenset(named))


def _below(word: str) -> tuple[dict[str, Any], frozenset[str]]:
    """The options that a recipe, run directory or file of weights gives, and the user code that it may name."""
    path = user_path(word)
    weights = path / STUDENT if path.is_dir() else path
    if not (weights.is_file() and weights.suffix == ".safetensors"):
        recipe = load_recipe(find_recipe(word))
        return {key: recipe[key] for key in ("data", "teacher", "import") if key in recipe}, frozenset(named_in(recipe))
    about = read_about(weights)
    if "model" not in about:
        raise CheckpointError(f"{weights} does not say its model; give --teacher.name NAME --teacher.weights {weights}")
    config = weights.parent / CONFIG
    recipe = load_recipe(config) if config.is_file() else {}
    data = {name: about[name] for name in ("image_size", "crop_pct") if name in about} | recipe.get("data", {})
    found: dict[str, Any] = {"data": data, "teacher": {"name": about["model"], "weights": str(weights)}}
    if not path.is_dir():
        return found, frozenset()
    return found | {"import": imports_of(recipe)}, frozenset(named_in(recipe))


def _with_path(teacher: TeacherSettings, runs: Path) -> TeacherSettings:
    """The settings with the absolute path of the weights. A reference to a recipe becomes its run directory."""
    if teacher.weights is None:
        return teacher
    recipe = referred(teacher.weights)
    path = user_path(teacher.weights) if recipe is None else run_folder(recipe, runs, 0)
    return replace(teacher, weights=str(path.absolute()))
