"""One run, from a configuration to a run directory: everything is checked before anything long begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from timm.utils import unwrap_model
from torch import nn

from disk_kd import ranks
from disk_kd.build import (
    STUDENT,
    build_task,
    check_named,
    find_weights,
    first_batches,
    inference_batch,
    load_data,
    normalisation,
    open_store,
    pick_device,
    place,
    read_about,
    settle_options,
    settle_store,
    settle_views,
    student_metadata,
    train_loader,
    trained_model,
)
from disk_kd.config import DataConfig, EvaluationConfig, RunConfig, run_parser, settle, undecided
from disk_kd.data import AnySplit, Batch, Dataset, Loader, check_labels, workers_watched
from disk_kd.errors import CheckpointError, ConfigError, DataError, DiskKDError, ModelError, RunError
from disk_kd.evaluate import Metrics, evaluate, predict, temperature_scaled_nll
from disk_kd.files import read_yaml, remove_leftovers, save_tensors, write_text
from disk_kd.models import load_state_dict, shipped_weights
from disk_kd.summary import SUMMARY, last_metrics, model_sizes, read_summary, summarise
from disk_kd.tasks import StudentTask, plan_passes
from disk_kd.teacher import TeacherStore
from disk_kd.train import (
    BEST,
    CHECKPOINT,
    Display,
    JsonConsole,
    TrainStep,
    check_logger,
    compile_where_it_pays,
    evaluated,
    fit,
    make_optimizer,
    prepare_ranks,
    tracked,
)
from disk_kd.train.checkpoint import seed_all

CONFIG = "config.yaml"
DATA = "data.json"
"""Fingerprints of the images, as they were when the run began."""
LOCK = Path("last") / "lock"


class BusyError(RunError):
    """Another process does this run."""


def execute(
    config: RunConfig, console: Console | None = None, load: Callable[[DataConfig], Dataset] = load_data
) -> dict[str, Any]:
    """Do the run that `config` describes.

    Args:
        config: of the run.
        console: where progress goes.
        load: gives the dataset.

    Returns:
        What `summary.json` holds.

    Raises:
        DiskKDError: bad input of any kind, before training begins.
        OSError: the disk is full or not writable; what was written before stays whole.
    """
    with workers_watched(), ranks.joined(pick_device(config.train.device)) as device:
        return _execute(config, device, (ranks.is_main() and console) or Console(quiet=True), load)


def _execute(
    config: RunConfig, device: torch.device, console: Console, load: Callable[[DataConfig], Dataset]
) -> dict[str, Any]:
    """`execute`, on a device of its own, as one of several ranks or alone."""
    config = ranks.from_main(lambda: _check_folder(settle_options(config)))
    folder, settings = config.output, config.train
    done = ranks.from_main(lambda: read_summary(folder) if (folder / STUDENT).exists() else None)
    if done:
        ranks.from_main(lambda: _check_reused(folder, config.data, load, console))
        return done
    check_logger(settings.logger)
    for part in ("student", "teacher"):
        find_weights(config, part)
    dataset = load(config.data)
    if ranks.from_main((folder / CHECKPOINT).exists):
        ranks.from_main(lambda: _check_same_images(folder, dataset))
        if not ranks.from_main((folder / DATA).exists):  # begun by version 0.1, which knew no dataset's normalisation
            dataset = replace(dataset, normalisation=None)
    seed_all(settings.seed)
    task = build_task(config, dataset, device, lambda text: console.print(text, markup=False, soft_wrap=True))
    plan = plan_passes(task.phases, settings.passes)
    train = place(dataset.train, device)
    views = max(map(plan.count, plan))
    config = ranks.from_main(lambda: settle_store(settle_views(config), task, train, views, console))
    loader = train_loader(config, task, train, rank=ranks.rank(), ranks=ranks.size())
    task.steps_per_pass = loader.steps_per_pass * settings.accumulate
    task.micro_batches = settings.accumulate
    sizes = model_sizes(task, dataset)
    _check_batch(task, loader.batch_size // settings.accumulate // ranks.size())
    for phase in set(plan):  # an optimiser that cannot be made is told before anything long
        make_optimizer(unwrap_model(getattr(task, phase.module)), settings)
    ranks.from_main(lambda: _lay_out(folder, task))
    with _alone_in(folder), ExitStack() as opened:
        with ranks.told_once():
            store = open_store(config, task, train, console)
        task.begin(first_batches(config, task, train, store))
        if ranks.size() > 1:
            prepare_ranks(task, settings)
        step = TrainStep(task, settings, store)
        compiled = compile_where_it_pays(
            step, loader, list(dict.fromkeys(plan)), len(plan) * loader.steps_per_pass, console.print
        )
        config = settle(config, {"train.compile": compiled})
        ranks.from_main(lambda: _begin(folder, config, dataset))
        tracker = opened.enter_context(tracked(settings.logger, folder, yaml.safe_load(config.text), console.print))

        def measure(split: AnySplit) -> dict[str, float]:
            model = evaluated(task)
            ranks.share_buffers(model)  # the main rank's model is the one that is saved
            return evaluate_split(model, split, device, settings.channels_last).as_dict()

        validation = None if dataset.validation is None else place(dataset.validation, device)
        steps = len(plan) * loader.steps_per_pass
        _tell_start(console, config, passes=len(plan), steps=steps)
        if late := [milestone for milestone in settings.milestones if milestone >= settings.passes]:
            console.print(
                f"The learning rate does not fall at train.milestones {late}: the run has {settings.passes} passes",
                soft_wrap=True,
            )
        display = Display(steps, title=str(folder), console=console, passes=len(plan))
        end = fit(
            step,
            loader,
            folder,
            plan=plan,
            validate=None if validation is None else lambda: measure(validation),
            display=display,
            resume=config.resume,
            tracker=tracker,
        )
        results = {"validation": validation, "test": None if dataset.test is None else place(dataset.test, device)}
        last = {name: measure(split) for name, split in results.items() if split is not None}
        if ranks.from_main((folder / BEST).exists):
            evaluated(task).load_state_dict(load_state_dict(folder / BEST))
        chosen = {name: measure(split) for name, split in results.items() if split is not None}
        if validation is not None and (test := results["test"]) is not None:
            scaled = temperature_scaled(evaluated(task), validation, test, device, settings.channels_last)
            chosen = {name: chosen[name] | scaled[name] for name in chosen}

        def keep() -> dict[str, Any]:
            student = evaluated(task)
            save_tensors(folder / STUDENT, student.state_dict(), student_metadata(config, dataset, student))
            summary = (
                summarise(config, task, dataset, end) | sizes | {"end": last_metrics(folder), "last": last} | chosen
            )
            write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
            if tracker is not None:
                tracker.summarise(summary)
            return summary

        return ranks.from_main(keep)


def _tell_start(console: Console, config: RunConfig, **lengths: int) -> None:
    """Say that training begins, where events are asked for."""
    if isinstance(console, JsonConsole):
        console.event(
            "start",
            run=str(config.output),
            method=config.method,
            hint=config.hint,
            student=config.student.name,
            teacher=None if config.teacher is None else config.teacher.name,
            data=config.data.name,
            seed=config.train.seed,
            **lengths,
        )


def store_teacher(config: RunConfig, console: Console | None = None) -> TeacherStore:
    """Make the teacher's stored outputs that the run of `config` would read, and train nothing; ranks share the views.

    Raises:
        ConfigError: the method has no teacher.
        DiskKDError: as `execute`.
    """
    if config.teacher is None:
        raise ConfigError(
            f"method {config.method} has no teacher whose outputs could be stored; give --method kd or disk"
        )
    config = settle(settle_options(config), {"teacher.store": True})
    console = console or Console(quiet=config.quiet)
    with workers_watched(), ranks.joined(pick_device(config.train.device)) as device, ranks.told_once():
        find_weights(config, "teacher")
        dataset = load_data(config.data)
        task = build_task(config, dataset, device)
        train = place(dataset.train, device)
        plan = plan_passes(task.phases, config.train.passes)
        config = settle_store(config, task, train, max(map(plan.count, plan)), console)
        store = open_store(config, task, train, console)
    assert store is not None
    return store


def evaluate_weights(config: EvaluationConfig) -> dict[str, Any]:
    """Metrics of a run's student, of a file of weights, or of a model that is part of the package, on a split.

    Raises:
        CheckpointError: there are no such weights, or they do not fit the model.
        ModelError: the weights do not say their model, and the config does not either.
        DataError: the data is missing, has no such split, or other classes than the weights.
    """
    path = config.weights / STUDENT if config.weights.is_dir() else config.weights
    if not path.exists():
        path = shipped_weights(str(path)) or path
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a finished run directory, a file, or cifar_resnet10_{{l,s}}")
    about = read_about(path)
    name = config.model.name if config.model else about.get("model")
    if name is None:
        raise ModelError(f"{path} does not say which model it is for; give --model.name")
    check_named(about | {"model": name}, path, config.named)
    options = config.model.options if config.model else about.get("options", {})
    device = pick_device(config.device)
    data = config.data
    if data.image_size is None:  # the size that the student learned from
        data = replace(data, image_size=about.get("image_size"))
    dataset = load_data(data)
    split: AnySplit | None = getattr(dataset, config.split)
    if split is None:
        raise DataError(f"{config.data.name} has no {config.split} split")
    sizes = dataset.num_classes, dataset.in_chans
    model = trained_model(name, options, path, *sizes, about, dataset.normalisation)
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    return evaluate_split(model.to(device), place(split, device), device).as_dict()


def evaluate_split(model: nn.Module, split: AnySplit, device: torch.device, channels_last: bool = False) -> Metrics:
    """Metrics of a model, which is on the device, on all of a split."""
    batches = _all_of(split, model, device, channels_last)
    return evaluate(model, batches, device=device, num_classes=len(split.class_names), across_ranks=True)


def temperature_scaled(
    model: nn.Module, validation: AnySplit, test: AnySplit, device: torch.device, channels_last: bool = False
) -> dict[str, dict[str, float]]:
    """The temperature with the least NLL on the validation split, and NLL and ECE of both splits at it."""
    batches = _all_of(validation, model, device, channels_last)
    temperature, nll, ece = temperature_scaled_nll(*predict(model, batches, device=device, across_ranks=True))
    batches = _all_of(test, model, device, channels_last)
    scaled = evaluate(
        model, batches, device=device, num_classes=len(test.class_names), temperature=temperature, across_ranks=True
    )
    found = {"validation": (nll, ece), "test": (scaled.nll, scaled.ece)}
    return {
        name: {"temperature": temperature, "nll_scaled": nll, "ece_scaled": ece} for name, (nll, ece) in found.items()
    }


def _all_of(split: AnySplit, model: nn.Module, device: torch.device, channels_last: bool) -> Iterator[Batch]:
    """All samples, or this rank's of them, as they are, normalised for the model."""
    mean, std = normalisation(model)
    loader = Loader(
        split,
        batch_size=inference_batch(device),
        mean=mean,
        std=std,
        shuffle=False,
        drop_last=False,
        channels_last=channels_last,
        device=device,
        rank=ranks.rank(),
        ranks=ranks.size(),
    )
    return (batch for batch in loader.batches(0) if len(batch.targets))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the run directory, so that no second process writes there."""
    if not ranks.is_main():
        yield
        return
    try:
        with FileLock(folder / LOCK, timeout=0):
            for path in (folder, folder / "best", folder / "last"):
                remove_leftovers(path)
            yield
    except Timeout:
        raise BusyError(f"another process is at work in {folder}; wait for it, or give another --output") from None


def _check_folder(config: RunConfig) -> RunConfig:
    """A new run needs a new folder, a resumed one the folder of the same configuration.

    Returns:
        The configuration, with what an earlier start of the run decided.
    """
    folder = config.output
    if not folder.exists():
        return config
    if not folder.is_dir():
        raise RunError(f"the output {folder} is no folder; give --output another name")
    # A run that died while it laid out its folder left nothing worth keeping.
    if not any(path.is_file() and path.name != "lock" and path.suffix != ".tmp" for path in folder.rglob("*")):
        return config
    if not config.resume:
        raise RunError(f"the run directory {folder} exists: give --resume to go on with it, or another --output")
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder} is not a run directory (it has no {CONFIG}); give another --output")
    begun = read_yaml(folder / CONFIG)
    if not isinstance(begun, dict):
        raise RunError(f"{folder / CONFIG} holds no options; give another --output")
    decided = {name: _at(begun, name) for name in undecided(config)}
    config = settle(config, {name: value for name, value in decided.items() if value is not _MISSING})
    config = replace(config, shares_views=False)  # a run goes on with the images that it began with
    now = yaml.safe_load(config.text)
    differing = _differences(begun, now) - {"output", "description", "published", "import"}
    differing -= _came_later(
        begun, now, run_parser(config.command, config.method, config.hint).get_defaults().as_dict()
    )
    if differing:
        names = ", ".join(sorted(differing))
        raise RunError(f"{folder} was begun with another {names}; resume it as it is, or give another --output")
    return config


def _differences(one: Any, other: Any, prefix: str = "") -> set[str]:
    """Dotted names of the options in which two configurations differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() | other.keys()
        return set().union(*(_differences(one.get(n), other.get(n), f"{prefix}{n}.") for n in names))
    return set() if one == other else {prefix.rstrip(".")}


def _came_later(begun: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> set[str]:
    """Options that `begun`, written by an earlier version, does not know, and that are as they are by default."""
    new = {name for name in _differences(begun, now) if _at(begun, name) is _MISSING}
    return {name for name in new if _at(now, name) == _as_written(_at(defaults, name))}


_MISSING = object()


def _at(options: Any, name: str) -> Any:
    """The option of a dotted name, or `_MISSING`."""
    for key in name.split("."):
        if not isinstance(options, dict) or key not in options:
            return _MISSING
        options = options[key]
    return options


def _as_written(value: Any) -> Any:
    """As a configuration file holds a value, where a tuple is a list; `_MISSING` for what none holds."""
    try:
        return yaml.safe_load(yaml.safe_dump(value))
    except yaml.representer.RepresenterError:
        return _MISSING


def _begin(folder: Path, config: RunConfig, dataset: Dataset) -> None:
    """Write what the run is, and of which images, unless version 0.1 began it, which did not say."""
    write_text(folder / CONFIG, config.text)
    if (folder / DATA).exists() or not (folder / CHECKPOINT).exists():
        write_text(folder / DATA, json.dumps(_fingerprints(dataset)) + "\n")


def _fingerprints(dataset: Dataset) -> dict[str, str]:
    splits = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: split.fingerprint() for name, split in splits.items() if split is not None}


def _check_reused(folder: Path, data: DataConfig, load: Callable[[DataConfig], Dataset], console: Console) -> None:
    """Refuse to reuse a finished run of other images than there are now; images that are gone cannot be compared.

    Raises:
        DataError: the images changed.
    """
    if not (folder / DATA).exists():  # of an earlier version
        return
    try:
        dataset = load(data)
    except (DiskKDError, OSError) as error:
        console.print(f"{folder} is reused, its images were not compared: {error}", markup=False, soft_wrap=True)
        return
    _check_same_images(folder, dataset)


def _check_same_images(folder: Path, dataset: Dataset) -> None:
    """Refuse images that changed since the run began, where it says which it began with.

    Raises:
        DataError: they did.
    """
    if not (folder / DATA).exists():
        return
    begun, now = read_yaml(folder / DATA), _fingerprints(dataset)
    changed = [name for name in now if not isinstance(begun, dict) or begun.get(name) != now[name]]
    if changed:
        raise DataError(
            f"the {' and '.join(changed)} images changed since {folder} was begun; put them back, or begin anew in"
            " another --output (compare: another --runs)"
        )


def _check_batch(task: StudentTask, images: int) -> None:
    """Batch normalisation has no variance to divide by in a batch of one, and some losses relate a batch's images."""
    normalises = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.trainable_module.modules())
    for what, least in (("batch normalisation", 1 + normalises), ("the method", task.least_batch)):
        if images < least:
            raise ConfigError(
                f"{what} needs at least {least} images at a time, not {images}; "
                "raise train.batch_size, lower train.accumulate, or give more training samples"
            )


def _lay_out(folder: Path, task: StudentTask) -> None:
    """Make the run directory, on a disk that holds checkpoint, its successor, the best and the final weights."""
    held = sum(t.numel() * t.element_size() for name, t in task.state_dict().items() if not name.startswith("teacher."))
    needed = 8 * held + 2**24
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        sizes = f"{free / 2**20:.0f} MiB free, the run needs {needed / 2**20:.0f} MiB"
        raise RunError(f"{place} has {sizes}; make room or give another --output")
    try:
        for path in (folder, folder / "best", folder / "last"):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run directory {folder} ({error.strerror}); give another --output") from None
