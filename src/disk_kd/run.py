"""One run, from a configuration to a run directory: everything is checked before anything long begins."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import shutil
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from timm.utils import unwrap_model
from torch import nn

from disk_kd.config import DataConfig, EvaluationConfig, ModelConfig, RunConfig, recipe_of, resolve_weights
from disk_kd.data import Dataset, Loader, Split, check_labels, load_dataset
from disk_kd.errors import CheckpointError, ConfigError, DataError, ModelError, RunError
from disk_kd.evaluate import Metrics, evaluate
from disk_kd.files import save_tensors, write_text
from disk_kd.models import create_model, load_state_dict, multiply_adds, read_metadata
from disk_kd.tasks import METHODS, StudentTask, plan_passes
from disk_kd.teacher import Teacher, TeacherStore, teacher_facts
from disk_kd.train import BEST, Display, Position, evaluated, fit

STUDENT = "student.safetensors"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
METADATA = "disk_kd"


def execute(config: RunConfig, console: Console | None = None) -> dict[str, Any]:
    """Do the run that `config` describes.

    Args:
        config: of the run.
        console: where progress goes.

    Returns:
        What `summary.json` holds.

    Raises:
        DiskKDError: bad input of any kind, before training begins.
        OSError: the disk is full or not writable; what was written before stays whole.
    """
    folder, settings = config.output, config.train
    _check_folder(config)
    if (folder / SUMMARY).exists():
        return json.loads((folder / SUMMARY).read_text())
    device = pick_device(settings.device)
    for part in ("student", "teacher"):
        find_weights(config, part)
    dataset = load_data(config.data)
    torch.manual_seed(settings.seed)
    task = build_task(config, dataset, device)
    loader = train_loader(config, task, dataset.train.to(device))
    plan = plan_passes(task.phases, settings.passes)
    task.steps_per_pass = loader.steps_per_pass * settings.accumulate
    _check_space(folder, task)
    store = open_store(config, task, loader.split)
    for path in (folder, folder / "best", folder / "last"):
        path.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, config.text)

    def measure(split: Split) -> dict[str, float]:
        return evaluate_split(evaluated(task), split, settings.channels_last).as_dict()

    validation = None if dataset.validation is None else dataset.validation.to(device)
    display = Display(len(plan) * loader.steps_per_pass, title=str(folder), quiet=config.quiet, console=console)
    end = fit(
        task,
        loader,
        settings,
        folder,
        plan=plan,
        validate=None if validation is None else lambda: measure(validation),
        display=display,
        store=store,
        resume=config.resume,
    )
    results = {"validation": validation, "test": None if dataset.test is None else dataset.test.to(device)}
    last = {name: measure(split) for name, split in results.items() if split is not None}
    if (folder / BEST).exists():
        evaluated(task).load_state_dict(load_state_dict(folder / BEST))
    chosen = {name: measure(split) for name, split in results.items() if split is not None}
    save_tensors(folder / STUDENT, evaluated(task).state_dict(), student_metadata(config, dataset))
    summary = summarise(config, task, dataset, end) | {"end": last_metrics(folder), "last": last} | chosen
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device {name!r} here ({str(error).splitlines()[0]}); give cpu, cuda or auto") from None
    return device


def find_weights(config: RunConfig, part: str) -> Path | None:
    """The file of weights that the config names for "student" or "teacher"; None where it names none.

    Raises:
        CheckpointError: it names a file or run that does not exist.
        ModelError: a teacher without weights.
    """
    model: ModelConfig | None = getattr(config, part)
    if model is None:
        return None
    resolved = resolve_weights(model.weights, part, config.runs, config.train.seed)
    if resolved is None:
        if part == "teacher" and not model.pretrained:
            raise ModelError(
                "the teacher has no weights: give --teacher.weights FILE_OR_RUN, or --teacher.pretrained true"
            )
        return None
    path = Path(resolved)
    path = path / STUDENT if path.is_dir() else path
    if path.is_file():
        return path
    recipe = recipe_of(model.weights)
    make = (
        f"make it with: disk-kd train {recipe}"
        if recipe
        else f"give --{part}.weights a file or a finished run directory"
    )
    raise CheckpointError(f"no {part} weights at {resolved}; {make}")


def load_data(data: DataConfig) -> Dataset:
    """The dataset that the config names."""
    return load_dataset(
        data.name,
        root=data.root,
        image_size=data.image_size,
        download=data.download,
        validation=data.validation,
        seed=data.split_seed,
        limit_train=data.limit_train,
        label_noise=data.label_noise,
    )


def build_model(config: RunConfig, part: str, dataset: Dataset) -> nn.Module:
    """The student or the teacher, with its weights, for the classes and channels of the data.

    Raises:
        ModelError, CheckpointError: the name is unknown, or the weights do not fit it or the data.
        DataError: the weights were trained with other classes, or in another order.
    """
    model: ModelConfig = getattr(config, part)
    weights = find_weights(config, part)
    built = create_model(
        model.name,
        num_classes=dataset.num_classes,
        in_chans=dataset.in_chans,
        weights=weights,
        pretrained=model.pretrained,
        **model.options,
    )
    about = {} if weights is None else read_about(weights)
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    return built


def build_task(config: RunConfig, dataset: Dataset, device: torch.device) -> StudentTask:
    """The method with its student and teacher on the device, as the settings want them."""
    settings = config.train
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    student = build_model(config, "student", dataset).to(device).to(memory_format=layout)
    method = METHODS[config.method]
    if config.teacher is None:
        task = method(student, **config.method_options)
    else:
        model = build_model(config, "teacher", dataset).to(device).to(memory_format=layout)
        teacher = Teacher.of(model, student, image_size=config.teacher.image_size)
        task = method(student, teacher, **config.method_options)
    if settings.compile:
        task.compile()
    if settings.ema_decay is not None:
        task.setup_ema(decay=settings.ema_decay)
    return task


def open_store(config: RunConfig, task: StudentTask, split: Split) -> TeacherStore | None:
    """The teacher's stored outputs, made where there are none yet; None where the teacher is to run at each step.

    Raises:
        ConfigError: `teacher.store` without `data.views`: there is no end of views to store.
    """
    if config.teacher is None or task.teacher is None or not config.teacher.store:
        return None
    views = config.data.views
    if views is None:
        raise ConfigError("teacher.store needs data.views: how many augmentations of each sample to store")
    facts = {
        "data_sha256": split.fingerprint(),
        "augment": asdict(config.data.augment),
        "view_seed": config.data.view_seed,
        **teacher_facts(task.teacher),
        "needs": sorted(task.needs),
        "views": views,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    store = TeacherStore.build(
        config.runs / "teacher-store" / key,
        task.teacher,
        train_loader(config, task, split, batch_size=500, shuffle=False, drop_last=False),
        views=views,
        samples=int(split.ids.max()) + 1,
        manifest=facts,
    )
    store.preload(split.images.device)
    return store


def train_loader(config: RunConfig, task: StudentTask, split: Split, **changes: Any) -> Loader:
    """Batches for training, augmented, and normalised for the student."""
    mean, std = normalisation(task.student)
    options: dict[str, Any] = {
        "batch_size": config.train.batch_size,
        "augment": config.data.augment,
        "seed": config.train.seed,
        "augment_seed": config.train.seed if config.data.views is None else config.data.view_seed,
        "views": config.data.views,
        "channels_last": config.train.channels_last,
    }
    return Loader(split, mean=mean, std=std, **(options | changes))


def evaluate_split(model: nn.Module, split: Split, channels_last: bool = False) -> Metrics:
    """Metrics of a model on all of a split, which is on the model's device."""
    mean, std = normalisation(model)
    loader = Loader(
        split,
        batch_size=1000,
        mean=mean,
        std=std,
        shuffle=False,
        drop_last=False,
        channels_last=channels_last,
    )
    return evaluate(model, loader.batches(0), device=split.images.device, num_classes=len(split.class_names))


def evaluate_weights(config: EvaluationConfig) -> dict[str, Any]:
    """Metrics of a run's student, or of a file of weights, on a split of a dataset.

    Raises:
        CheckpointError: there are no such weights, or they do not fit the model.
        ModelError: the weights do not say their model, and the config does not either.
        DataError: the data is missing, has no such split, or other classes than the weights.
    """
    path = config.weights / STUDENT if config.weights.is_dir() else config.weights
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a finished run directory or a file")
    about = read_about(path)
    name = config.model.name if config.model else about.get("model")
    if name is None:
        raise ModelError(f"{path} does not say which model it is for; give --model.name")
    options = config.model.options if config.model else about.get("options", {})
    device = pick_device(config.device)
    dataset = load_data(config.data)
    split: Split | None = getattr(dataset, config.split)
    if split is None:
        raise DataError(f"{config.data.name} has no {config.split} split")
    model = create_model(name, num_classes=dataset.num_classes, in_chans=dataset.in_chans, weights=path, **options)
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    return evaluate_split(model.to(device), split.to(device)).as_dict()


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a timm model's inputs, for values in [0, 1]."""
    settings = unwrap_model(model).pretrained_cfg
    return tuple(settings["mean"]), tuple(settings["std"])


def student_metadata(config: RunConfig, dataset: Dataset) -> dict[str, str]:
    """What a file of weights says of itself: enough to build the model and to read its outputs.

    One entry, because the order of several in a safetensors file differs from write to write.
    """
    return {
        METADATA: json.dumps(
            {
                "model": config.student.name,
                "options": config.student.options,
                "in_chans": dataset.in_chans,
                "image_size": dataset.image_size,
                "classes": dataset.class_names,
            }
        )
    }


def read_about(weights: Path) -> dict[str, Any]:
    """What `student_metadata` put into a file; empty for other files."""
    if weights.suffix != ".safetensors":
        return {}
    return json.loads(read_metadata(weights).get(METADATA, "{}"))


def summarise(config: RunConfig, task: StudentTask, dataset: Dataset, end: Position) -> dict[str, Any]:
    """All of a run but its accuracy: what was run, how much, on what."""
    student = task.student
    size = (dataset.in_chans, dataset.image_size, dataset.image_size)
    start = find_weights(config, "student")
    return {
        "description": config.description,
        "published": config.published,
        "method": config.method,
        "student": config.student.name,
        "teacher": config.teacher and config.teacher.name,
        "data": dataset.name,
        "train_samples": len(dataset.train),
        "seed": config.train.seed,
        "weight_decay": config.train.weight_decay,
        "start": "scratch" if start is None else str(start),
        "student_passes": end.student_passes,
        "start_passes": 0 if start is None else _passes_before(start),
        "all_passes": end.passes,
        "selected_pass": end.best_pass if end.best_pass else end.student_passes,
        "parameters": sum(p.numel() for p in student.parameters()),
        "multiply_adds": multiply_adds(student, size),
        "train_s": round(end.train_s, 2),
        "images_per_s": round(end.images / end.train_s, 1),
        **_environment(task.device),
    }


def last_metrics(folder: Path) -> dict[str, float]:
    """The means of the last training line of a run's log."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"][-1]


def _passes_before(weights: Path) -> int | None:
    """Student passes behind the weights that a run starts from; None where nobody knows."""
    try:
        summary = json.loads((weights.parent / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary["student_passes"] + summary["start_passes"]


def _environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and memory."""
    cuda = device.type == "cuda"
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "hardware": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("disk-kd", "torch", "torchvision", "timm")},
        },
        "git_revision": _git_revision(),
    }


def _processor() -> str:
    """Name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_revision() -> str | None:
    """Revision of the source that runs, with a mark when it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _check_folder(config: RunConfig) -> None:
    """A new run needs a new folder; a resumed one the folder of the same configuration."""
    folder = config.output
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"the output {folder} is a file; give --output another name")
    if not any(folder.iterdir()):
        return
    if not config.resume:
        raise RunError(f"the run directory {folder} exists: give --resume to go on with it, or another --output")
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder} is not a run directory (it has no {CONFIG}); give another --output")
    differing = _differences(yaml.safe_load((folder / CONFIG).read_text()), yaml.safe_load(config.text))
    differing.discard("output")
    if differing:
        raise RunError(
            f"{folder} was begun with another {', '.join(sorted(differing))}; resume it as it is, or give another --output"
        )


def _differences(one: Any, other: Any, prefix: str = "") -> set[str]:
    """Dotted names of the options in which two configurations differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() | other.keys()
        return set().union(*(_differences(one.get(n), other.get(n), f"{prefix}{n}.") for n in names))
    return set() if one == other else {prefix.rstrip(".")}


def _check_space(folder: Path, task: StudentTask) -> None:
    """The disk must hold checkpoint, its successor, the best and the final weights."""
    held = sum(t.numel() * t.element_size() for name, t in task.state_dict().items() if not name.startswith("teacher."))
    needed = 8 * held + 2**24
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"{place} has {free / 2**20:.0f} MiB free, the run needs {needed / 2**20:.0f} MiB; make room or give another --output"
        )
