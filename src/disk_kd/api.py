"""Python functions for the commands: distill, train, evaluate, predict, compare, advise, tune, load_student.

run = disk_kd.distill("cifar100/resnet10_s/resnet10_l-kd", data={"root": "data"}, train={"seed": 1})
print(run.summary["test"]["top1"])
student = run.student()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import nn

from disk_kd.advising import Advice
from disk_kd.advising import advise as advise_on
from disk_kd.build import STUDENT
from disk_kd.comparison import Comparison, Reporter, of_recipes, read_experiment
from disk_kd.comparison import compare as compare_experiment
from disk_kd.comparison.experiment import Experiment, experiment_of
from disk_kd.config import RunConfig
from disk_kd.data.settings import DataSettings
from disk_kd.errors import CheckpointError, ConfigError
from disk_kd.files import user_path
from disk_kd.inference import Prediction, check_paths, image_files, open_classifier, predict_files
from disk_kd.measure import EvaluationConfig, TeacherEvaluation, evaluate_teachers, evaluate_weights
from disk_kd.models.about import read_about, recorded_data
from disk_kd.models.settings import ModelSettings
from disk_kd.options import merged, read
from disk_kd.recipe import CONFIG, find_recipe, load_recipe, named_in
from disk_kd.run import execute
from disk_kd.trained import check_no_hub, trained_model

if TYPE_CHECKING:
    from disk_kd.tuning import Tuned

Recipe = str | Path | Mapping[str, Any] | RunConfig | None
"""Name or file of a recipe, a mapping of its options, or a full configuration; None: the defaults."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: configuration of the run.
        summary: content of summary.json: metrics by split, epochs, seconds, versions.
    """

    config: RunConfig
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.config.output

    def student(self) -> nn.Module:
        """The student, in eval mode, on the CPU.

        Raises:
            CheckpointError: the file of the student is missing.
        """
        return load_student(self.folder)


def distill(
    recipe: Recipe = None,
    *,
    runs: str | Path = "runs",
    resume: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Run:
    """Train a student with any method; most methods learn from a teacher. This is `disk-kd distill`.

    Args:
        recipe: source of the options; the options below override it.
        runs: folder of run directories.
        resume: resume an unfinished run, or return a finished one.
        console: console for progress; None: no output.
        options: parts of a recipe: `data`, `student`, `teacher`, `method`, `hint` and `train`, and `output` and
            `description`. A part is a mapping of options or, except for `train`, a name.

    Returns:
        The finished run.

    Raises:
        DiskKDError: the input is not valid. It is checked before training starts.

    Example:
        >>> import disk_kd
        >>> run = disk_kd.distill("digits-demo/kd", train={"seed": 3})  # doctest: +SKIP
    """
    return _run("distill", recipe, runs, resume, console, options)


def train(
    recipe: Recipe = None,
    *,
    runs: str | Path = "runs",
    resume: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Run:
    """Train a model with cross-entropy, such as a teacher or a baseline. This is `disk-kd train`; arguments as for
    `distill`.
    """
    return _run("train", recipe, runs, resume, console, options)


def evaluate(
    model: str | Path | Run | None = None,
    *,
    teacher: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    data: Mapping[str, Any] | None = None,
    split: str = "test",
    device: str = "auto",
) -> dict[str, Any]:
    """Metrics of a run's student or of a file of weights, or of teachers. This is `disk-kd evaluate`.

    Args:
        model: a run, its folder, a file of weights, cifar_resnet10_l or cifar_resnet10_s.
        teacher: options of a teacher, or a list of them, to measure in the place of a model.
        data: options of the data; they override those of the run.
        split: test, validation or train.
        device: cpu, cuda, cuda:1 or mps; "auto" takes the accelerator if there is one.

    Returns:
        "top1" and "top5" in percent, "nll" in nats, "ece" as a fraction, and "samples"; of teachers, these by name,
        and those of the "ensemble" if there are several.

    Raises:
        DiskKDError: the weights or the data are missing, or do not fit each other.
        ConfigError: neither a model nor a teacher is given, or both are.
    """
    if (model is None) == (teacher is None):
        raise ConfigError("evaluate takes a model or a teacher; give one of them")
    if model is None:
        options = _parts({"teacher": teacher, "data": data or {}, "method": "kd", "hint": None})
        return evaluate_teachers(TeacherEvaluation(RunConfig.of_recipe(None, options), split, device))
    if split not in ("test", "validation", "train"):
        raise ConfigError(f"split must be one of test, validation, train, not {split!r}")
    path = model.folder if isinstance(model, Run) else user_path(model)
    recipe = load_recipe(path / CONFIG).get("data", {}) if (path / CONFIG).is_file() else {}
    given = _named("data", data or {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"data must be a mapping of options or the name of a dataset, not {given!r}")
    if path.is_file():
        recipe = recorded_data(path)
    settings = read(DataSettings, merged(recipe, given), "data")
    named = frozenset() if not isinstance(model, Run) else frozenset(_own_names(model.config))
    return evaluate_weights(EvaluationConfig(path, settings, None, split, device, named))


def predict(
    model: str | Path | Run,
    images: str | Path | Iterable[str | Path],
    *,
    top_k: int = 5,
    batch_size: int | None = None,
    skipped: Callable[[str], None] | None = None,
    pretrained: bool = False,
    imports: Iterable[str] = (),
) -> Iterator[Prediction]:
    """Classify image files. This is `disk-kd predict`.

    Images are prepared as in evaluation. At most one batch of images is in memory.

    Args:
        model: a run, its folder, a file of weights, an exported .onnx or .pt2 file or timm folder, cifar_resnet10_l or
            cifar_resnet10_s; or with `pretrained` the name of a timm model.
        images: files, folders or uncompressed tars.
        top_k: number of classes of a prediction; of a model with fewer classes, all.
        batch_size: images in a batch; None: as in evaluation.
        skipped: gets a message for each image that cannot be read, which is then left out; None: it is an error.
        pretrained: let timm download pretrained weights.
        imports: modules, or my_module:make, of a model of your own.

    Returns:
        The predictions, in the order of the images. Each has the path, and the names, labels and probabilities of the
        most probable classes. Probabilities are calibrated by the run's temperature, if the model records it.

    Raises:
        DiskKDError: the model cannot be opened, or an image cannot be read.

    Example:
        >>> import disk_kd
        >>> for one in disk_kd.predict("runs/mine", ["photos"], top_k=1):  # doctest: +SKIP
        ...     print(one.path, one.classes[0], one.probabilities[0])
    """
    paths = [images] if isinstance(images, str | Path) else list(images)
    check_paths(paths)
    source = model.folder if isinstance(model, Run) else model
    classifier = open_classifier(source, pretrained=pretrained, imports=imports)
    return predict_files(classifier, image_files(paths), top_k=top_k, batch_size=batch_size, skipped=skipped)


def load_student(path: str | Path) -> nn.Module:
    """The student of a run, or the model of a file of weights that a run wrote, in eval mode on the CPU.

    Its `pretrained_cfg` contains the normalisation of images: "mean", "std" and "input_size".

    Raises:
        CheckpointError: there is no such file, or it does not record its model.
        ModelError: its model comes from your own module, and the module was not imported.
    """
    file = user_path(path)
    file = file / STUDENT if file.is_dir() else file
    if not file.is_file():
        raise CheckpointError(f"no weights at {file}; give a finished run directory, or a file that a run wrote")
    about = read_about(file)
    if "model" not in about:
        raise CheckpointError(f"{file} does not say which model it is for; load it with timm.create_model")
    config = file.with_name(CONFIG)
    check_no_hub(about, file, named_in(load_recipe(config)) if user_path(path).is_dir() and config.is_file() else ())
    sizes = len(about["classes"]), about["in_chans"]
    return trained_model(about["model"], about.get("options", {}), file, *sizes, about).eval()


def compare(
    rows: str | Path | Sequence[str] | Mapping[str, Any],
    *,
    seeds: int | None = None,
    baseline: str | None = None,
    runs: str | Path = "runs",
    name: str = "compare",
    jobs: int = 1,
    console: Console | None = None,
    report: Reporter | None = None,
    **options: Any,
) -> Comparison:
    """Run several recipes, or the rows of an experiment, over several seeds. This is `disk-kd compare`.

    It starts processes, so a script must call it under `if __name__ == "__main__":`. An error ends these processes.

    Args:
        rows: an experiment file (docs/experiments.md); names of recipes; or a mapping from row names to options, each
            with its `recipe`.
        seeds: number of seeds of each row, counted from 0; None: the experiment's, or 3.
        baseline: name of the row that the others are compared with.
        runs: folder of the run directories and the table.
        name: name of the tables NAME.md, NAME.csv and NAME.tex, and of the folder of the rows.
        jobs: number of runs in parallel.
        console: console for progress and the table; None: no output.
        report: function that writes a report, such as `disk_kd.report.report_comparison`; None: no report.
        options: parts of a recipe that apply to every row, as for `distill`.

    Raises:
        DiskKDError: the input is not valid (checked before the first run), or all runs failed.
    """
    given = _parts(options)
    for what, count in (("seeds", 3 if seeds is None else seeds), ("jobs", jobs)):
        if type(count) is not int or count < 1:
            raise ConfigError(f"{what} must be a whole number of at least 1, not {count!r}")
    if isinstance(rows, Mapping):
        if wrong := next((row for row in rows.values() if not isinstance(row, Mapping)), None):
            raise ConfigError(f"a row must be a mapping with a recipe, not {wrong!r}")
        tree = {key: _parts(row) for key, row in rows.items()}
        experiment = experiment_of({"rows": tree, "baseline": baseline}, name, seeds=seeds)
    elif isinstance(rows, str | Path):
        experiment = _with_baseline(read_experiment(user_path(rows), seeds), baseline)
    else:
        if not rows or not all(isinstance(row, str) for row in rows):
            raise ConfigError(f"rows must be names of recipes, at least one, not {list(rows)!r}")
        experiment = of_recipes(rows, seeds or 3, baseline)
    quiet = console or Console(quiet=True)
    return compare_experiment(
        experiment, runs=user_path(runs), name=name, options=given, jobs=jobs, console=quiet, report=report
    )


def advise(recipe: Recipe = None, *, runs: str | Path = "runs", **options: Any) -> Advice:
    """Look at data, teacher and hardware before any training. This is `disk-kd advise`.

    It trains a few steps to measure times, and writes nothing. `disk_kd.advising.page` gives the page as text.

    Args:
        recipe, runs, options: as for `distill`.

    Raises:
        DiskKDError: the input is not valid, or the method has no teacher.
    """
    name = "RECIPE" if recipe is None or isinstance(recipe, Mapping | RunConfig) else str(recipe)
    return advise_on(_config("distill", recipe, runs, False, options), name)


def tune(
    recipe: str | Path,
    *,
    hours: float | None = None,
    full_runs: int | None = None,
    methods: Sequence[str] | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    seeds: int = 3,
    jobs: int = 1,
    runs: str | Path = "runs",
    output: str | Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> Tuned:
    """Search for the best method and settings, and measure what distillation gains with them. This is `disk-kd tune`.

    It starts processes, so a script must call it under `if __name__ == "__main__":`. The same call goes on with a
    search that was stopped or killed.

    Args:
        recipe: name or file of a recipe.
        hours: time for all of it. Give this or `full_runs`.
        full_runs: length of the search in runs of full length, summed over the methods.
        methods: METHOD or METHOD+HINT; None: ce, kd, dist and the recipe's.
        space: file of the search space, or a mapping with `space` and `methods`; None: the recipe's, or the usual one.
        seeds: number of seeds of the confirmation.
        jobs: number of runs in parallel.
        runs: folder of run directories, with the teacher store.
        output: folder of the search; None: RUNS/tune/RECIPE.
        console: console for progress; None: no output.
        options: parts of a recipe that apply to every run, such as `data` and `train`.

    Raises:
        DiskKDError: the input is not valid (checked before the first run), or all runs of a method failed.
    """
    from disk_kd.tuning import read_request  # here, because matplotlib takes a second to import
    from disk_kd.tuning import tune as tune_request

    request = read_request(
        str(recipe),
        _parts(options),
        hours=hours,
        full_runs=full_runs,
        methods=methods,
        space=user_path(space) if isinstance(space, str) else space,
        seeds=seeds,
        jobs=jobs,
        runs=user_path(runs),
        output=None if output is None else user_path(output),
    )
    return tune_request(request, console)


def _with_baseline(experiment: Experiment, baseline: str | None) -> Experiment:
    if baseline is None:
        return experiment
    return Experiment(experiment.rows, experiment.seeds, experiment.tuning_seeds, baseline)


def _run(
    command: str, recipe: Recipe, runs: str | Path, resume: bool, console: Console | None, options: Mapping[str, Any]
) -> Run:
    config = _config(command, recipe, runs, resume, options)
    return Run(config, execute(config, console))


def _config(command: str, recipe: Recipe, runs: str | Path, resume: bool, options: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run."""
    tree, path = _parts(options), None
    if isinstance(recipe, RunConfig):
        if tree:
            raise ConfigError("a RunConfig takes no further options; change it with dataclasses.replace")
        return recipe
    if isinstance(recipe, Mapping):
        tree = merged(_parts(recipe), tree)
    elif recipe is not None:
        path = find_recipe(str(recipe))
    return RunConfig.of_recipe(path, tree, command=command, runs=user_path(runs), resume=resume)


def _parts(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _named(key, value) for key, value in options.items()}


def _named(part: str, value: Any) -> Any:
    """A part of a recipe; a name alone becomes a mapping."""
    return {"name": value} if part in ("data", "student", "teacher") and isinstance(value, str) else value


def _own_names(config: RunConfig) -> set[str]:
    """The names of user code that a file of the run's weights may refer to."""
    models: list[ModelSettings] = [config.student, *(config.teacher.each if config.teacher else ())]
    names = {model.name for model in models} | set(config.imports)
    return names | ({config.hint} if config.hint else set())
