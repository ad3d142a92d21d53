"""The summary of a run: settings, amounts, hardware and versions."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from disk_kd.build import find_weights
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.errors import RunError, one_line
from disk_kd.memory import peak_host_bytes
from disk_kd.models import multiply_adds
from disk_kd.old_names import new_keys
from disk_kd.tasks import StudentTask
from disk_kd.training import Position
from disk_kd.training.selection import RULES, WITHOUT_VALIDATION

SUMMARY = "summary.json"
_TEXTS = ("method", "student", "data", "description", "start", "hardware")
_NUMBERS = (
    *("train_samples", "parameters", "multiply_adds", "student_epochs", "all_epochs", "selected_epoch", "train_s"),
    *("images_per_s", "peak_memory_bytes", "classes", "seed", "weight_decay", "threads"),
)
_OPTIONAL = ("published", "start_epochs", "peak_device_memory_bytes", "limit_test")
_MAPPINGS = ("selection", "versions", "end", "last", "validation", "test")
_KINDS: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_NUMBERS, int | float),
    **dict.fromkeys(_OPTIONAL, int | float | None),
    **dict.fromkeys(_MAPPINGS, dict),
}
"""The types of a summary's values."""


def summarise(config: RunConfig, task: StudentTask, dataset: Dataset, end: Position) -> dict[str, Any]:
    """Everything in a run's summary except its metrics: settings, amounts, hardware and versions."""
    start = find_weights(config, "student")
    return {
        "description": config.description,
        "published": config.published,
        "method": config.method,
        "student": config.student.name,
        "teacher": config.teacher and config.teacher.name,
        **_mapped_classes(config, task, dataset),
        "data": dataset.name,
        "classes": dataset.num_classes,
        "train_samples": len(dataset.train),
        "unlabelled_samples": dataset.train.unlabelled,
        "images_seen": {"labelled": end.images - end.unlabelled_images, "unlabelled": end.unlabelled_images},
        "limit_test": config.data.limit_test,
        "seed": config.train.seed,
        "weight_decay": config.train.weight_decay,
        "start": _start(config, start),
        "student_epochs": end.student_epochs,
        "start_epochs": _epochs_before(start) if start else None if config.student.pretrained else 0,
        "all_epochs": end.epochs,
        "selected_epoch": end.best_epoch if end.best_epoch else end.student_epochs,
        "selection": _selection(config, task, dataset, end),
        "train_s": round(end.train_s, 2),
        "images_per_s": round(end.images / end.train_s, 1),
        **environment(task.device),
    }


def worst_classes(dataset: Dataset, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Name of the class with the lowest accuracy, by split."""
    return {split: dataset.shown_names[int(of_split["worst_class"])] for split, of_split in metrics.items()}


def _mapped_classes(config: RunConfig, task: StudentTask, dataset: Dataset) -> dict[str, Any]:
    """The classes of each teacher with other classes than the data, for each class of the data."""
    if config.teacher is None or task.teacher is None:
        return {}
    members = zip(config.teacher.each, task.teacher.members, strict=True)
    found = [
        {"teacher": one.name, "classes": dict(zip(dataset.class_names, map(list, member.label_map.names), strict=True))}
        for one, member in members
        if member.label_map is not None
    ]
    return {"teacher_classes": found} if found else {}


def model_sizes(task: StudentTask, dataset: Dataset) -> dict[str, int]:
    """Parameters and multiply-adds of the student, for one image of the data.

    Raises:
        ModelError: student or teacher does not take such images.
    """
    size = (dataset.in_chans, dataset.image_size, dataset.image_size)
    if task.teacher is not None:
        for teacher in task.teacher.members:
            multiply_adds(teacher.model, (dataset.in_chans, *(teacher.image_size or size[1:])))
    return {
        "parameters": sum(p.numel() for p in task.student.parameters()),
        "multiply_adds": multiply_adds(task.student, size),
    }


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if the run is not finished.

    Raises:
        RunError: it cannot be read.
    """
    if not (folder / SUMMARY).is_file():
        return None
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        summary = None
    summary = new_keys(summary) if isinstance(summary, dict) else {"": summary}
    if (wrong := _wrong_key(summary)) is not None:
        what = f"{wrong} is {json.dumps(summary[wrong])[:40]}" if wrong else "it is no mapping"
        raise RunError(f"{folder / SUMMARY} is damaged ({what}); delete it, and --resume writes it again")
    return summary


def _wrong_key(summary: Mapping[str, Any]) -> str | None:
    """The first key of a summary whose value has another type than `summarise` writes; None if there is none."""
    for key, value in summary.items():
        fits = isinstance(value, _KINDS.get(key, object)) and key != ""
        if key in ("validation", "test"):
            fits = fits and _are_numbers(value)
        if key == "last":
            fits = fits and all(isinstance(metrics, dict) and _are_numbers(metrics) for metrics in value.values())
        if not fits:
            return key
    return None


def _are_numbers(metrics: Mapping[str, Any]) -> bool:
    return all(isinstance(value, int | float | None) for value in metrics.values())


def last_metrics(folder: Path, config: RunConfig) -> dict[str, Any]:
    """The numbers of a run's last student epoch.

    Losses are means over the epoch. Other quantities are reduced as the method declares it (`Quantity.reduction`).

    Args:
        folder: of the run.
        config: of the run.

    Raises:
        RunError: the log is damaged.
    """
    try:
        return _last_metrics(folder, config)
    except (AttributeError, KeyError, RecursionError, StopIteration, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / 'metrics.jsonl'} is damaged ({one_line(error)}); begin in another --output"
        ) from None


def _last_metrics(folder: Path, config: RunConfig) -> dict[str, Any]:
    logged = [new_keys(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in logged if line["kind"] == "train"]
    fixed = config.task_class.fixed_student_phases
    last = next(line for line in reversed(lines) if line["phase"] not in fixed)
    before = [0, *(line["step"] for line in lines[:-1])]
    # A line is the mean over the steps since the one before, None where that is not finite.
    weighed = [(line, line["step"] - start) for line, start in zip(lines, before, strict=True)]
    weighed = [(line, steps) for line, steps in weighed if line["epoch"] == last["epoch"]]
    at_end = {quantity.name for quantity in config.quantities if quantity.reduction == "last"}
    means = {}
    for name in last.keys() - {"kind", "step", "phase", "epoch", "lr", *at_end}:
        found = [(line[name], steps) for line, steps in weighed if line.get(name) is not None]
        means[name] = fmean(*zip(*found, strict=True)) if found else None
    return last | means


def _selection(config: RunConfig, task: StudentTask, dataset: Dataset, end: Position) -> dict[str, Any]:
    """The rule that chose the checkpoint: its margin in points, the best accuracy, and the number of images."""
    by = config.train.select_by
    if dataset.validation is None or not task.classifies:
        return {"rule": WITHOUT_VALIDATION, "by": None, "margin": None, "validation_images": 0, f"best_{by}": None}
    margin, images = round(end.best_margin, 3), len(dataset.validation)
    return {"rule": RULES[by], "by": by, "margin": margin, "validation_images": images, f"best_{by}": end.best_score}


def _start(config: RunConfig, weights: Path | None) -> str:
    """The starting point of the student."""
    if weights is not None:
        return str(weights)
    return "pretrained" if config.student.pretrained else "scratch"


def _epochs_before(weights: Path) -> int | None:
    """Student epochs of the weights that a run starts from; None if unknown."""
    try:
        summary = new_keys(json.loads((weights.parent / SUMMARY).read_text()))
        return int(summary["student_epochs"]) + int(summary["start_epochs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and memory."""
    cuda = device.type == "cuda"
    return {
        "peak_memory_bytes": peak_host_bytes(),
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
    """Git revision of the running source, with a mark if it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
