"""One probe, from its settings to a folder that every command takes as a teacher."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from disk_kd import ranks
from disk_kd.backbones import build_backbone, pooled_features
from disk_kd.build import STUDENT, load_data
from disk_kd.data import AnySplit, Dataset, workers_watched
from disk_kd.devices import pick_device, place
from disk_kd.errors import ModelError, RunError
from disk_kd.models import shipped_weights
from disk_kd.models.about import read_about
from disk_kd.models.linear import LinearProbe, with_classifier
from disk_kd.plugins import PROBED, is_user_code
from disk_kd.probe.features import check_counts, labelled, store_facts, stored_features
from disk_kd.probe.fit import DEFAULT_C, FittedProbe, fit_probe
from disk_kd.probe.settings import GRID, ProbeSettings, Request
from disk_kd.teacher import Teacher, fixed_image_size, teacher_facts
from disk_kd.trained import check_named
from disk_kd.written import Written, check_output, write_teacher

PROBE = "probe.json"
"""The file with the result of a probe."""


@dataclass(frozen=True)
class ProbeResult:
    """A finished probe.

    Attributes:
        folder: the folder of the teacher.
        summary: "model", "features", "C", "scores" (for each C of the grid), "validation" ("top1" in percent and "nll"
            in nats of the chosen C; None without a validation split), "train_samples", "views", "features_s" and
            "fit_s".
        reused: whether the folder had the same probe already.
    """

    folder: Path
    summary: dict[str, Any]
    reused: bool = False


def probe(request: Request, console: Console | None = None) -> ProbeResult:
    """Fit a linear classifier on a backbone's features, and write both as a teacher.

    Raises:
        DiskKDError: the input is not valid. It is checked before the backbone runs over the images.
        OSError: the disk is full or not writable.
    """
    settings = request.settings
    with workers_watched(), ranks.joined(pick_device(settings.device)) as device, ranks.raised_once():
        console = (ranks.is_main() and console) or Console(quiet=True)
        weights = _weights(settings)
        if weights is not None:
            check_named(read_about(weights) | {"model": settings.teacher.name}, weights, request.named)
        dataset = load_data(settings.data)
        train = labelled(dataset.train)
        check_counts(train)
        grid = _grid(settings, dataset, console)
        backbone = build_backbone(settings.teacher, weights, dataset, "teacher")
        side = _image_size(settings, weights, backbone, dataset)
        features = pooled_features(backbone, dataset.in_chans, side)
        teacher = _frozen(settings, backbone.to(device), side, dataset, device)
        facts = _facts(settings, dataset, train, teacher, grid)
        if (done := ranks.from_main(lambda: check_output(settings.folder, PROBE, facts))) is not None:
            return ProbeResult(settings.folder, done, reused=True)
        begun = time.monotonic()
        parts = _features(settings, teacher, dataset, train, device, console)
        between = time.monotonic()
        return ranks.from_main(
            lambda: _write(request, weights, dataset, backbone, side, features, facts, grid, parts, between - begun)
        )


def _weights(settings: ProbeSettings) -> Path | None:
    """The file of the backbone's weights; None: timm's pretrained weights, or a model that has its own.

    Raises:
        ModelError, RunError: the backbone has no weights, or the file does not exist.
    """
    teacher = settings.teacher
    if teacher.weights is not None:
        path = Path(teacher.weights)
        path = path / STUDENT if path.is_dir() else path
        if not path.is_file():
            raise RunError(f"no weights of the backbone at {path}; give --teacher.weights a file or a finished run")
        return path
    if not teacher.pretrained and not is_user_code(teacher.name):
        raise ModelError(
            f"the backbone {teacher.name} has no weights: give --teacher.weights FILE_OR_RUN, or --teacher.pretrained"
            " true"
        )
    return shipped_weights(teacher.name) if teacher.pretrained and not is_user_code(teacher.name) else None


def _grid(settings: ProbeSettings, dataset: Dataset, console: Console) -> tuple[float, ...]:
    """The values of C to try: one where there is no validation split to choose on."""
    if dataset.validation is not None or len(settings.grid) == 1:
        return settings.grid
    if settings.grid != GRID:
        raise RunError(
            "there is no validation split to choose C of grid on; give one value, such as --grid [0.01], or"
            " --data.validation 0.1"
        )
    console.print(f"There is no validation split to choose C on: C is {DEFAULT_C}", soft_wrap=True)
    return (DEFAULT_C,)


def _image_size(settings: ProbeSettings, weights: Path | None, backbone: nn.Module, dataset: Dataset) -> int:
    """The side of the backbone's images: as in the settings, else that of its file, else that of the data."""
    recorded = None if weights is None else read_about(weights).get("image_size")
    fixed = fixed_image_size(backbone)
    return settings.teacher.image_size or recorded or (fixed[0] if fixed else dataset.image_size)


def _frozen(settings: ProbeSettings, backbone: nn.Module, side: int, dataset: Dataset, device: torch.device) -> Teacher:
    precision = settings.teacher.precision
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16"
    image_size = None if side == dataset.image_size else side
    return Teacher.of(backbone, backbone, {"pooled"}, image_size=image_size, fold=True, precision=precision)


def _facts(
    settings: ProbeSettings, dataset: Dataset, train: AnySplit, teacher: Teacher, grid: tuple[float, ...]
) -> dict[str, Any]:
    """Everything that the result depends on, as JSON values."""
    facts = {
        "backbone": teacher_facts(teacher),
        "data": dataset.fingerprint(),
        "images": store_facts(train, settings.data, augment=True),
        "views": settings.views,
        "grid": grid,
    }
    return json.loads(json.dumps(facts))


def _features(
    settings: ProbeSettings, teacher: Teacher, dataset: Dataset, train: AnySplit, device: torch.device, console: Console
) -> dict[str, tuple[Tensor, Tensor]]:
    """Features (V N, D) and labels (V N,) of the splits "train" and "validation", as far as they exist."""
    splits = {"train": train} | ({} if dataset.validation is None else {"validation": labelled(dataset.validation)})
    found = {}
    for name, split in splits.items():
        views = settings.views if name == "train" else 1
        features_VND = stored_features(
            teacher,
            place(split, device),
            settings.data,
            views=views,
            augment=name == "train",
            runs=settings.runs,
            console=console,
        )
        found[name] = features_VND.flatten(0, 1), split.targets.cpu().repeat(views)
    return found


def _write(
    request: Request,
    weights: Path | None,
    dataset: Dataset,
    backbone: nn.Module,
    side: int,
    features: int,
    facts: dict[str, Any],
    grid: tuple[float, ...],
    parts: dict[str, tuple[Tensor, Tensor]],
    features_s: float,
) -> ProbeResult:
    """Fit the classifier, check it against the backbone's features, and write the teacher."""
    settings, begun = request.settings, time.monotonic()
    fitted = fit_probe(*parts["train"], parts.get("validation"), grid, dataset.num_classes)
    fit_s = time.monotonic() - begun
    model = with_classifier(copy.deepcopy(backbone).cpu(), fitted.weight_KD, fitted.bias_K).eval()
    own = isinstance(model, LinearProbe)
    options = {} if weights is None else dict(read_about(weights).get("options", {}))
    options |= settings.teacher.options | ({"features": features} if own else {})
    written = Written(
        name=f"{PROBED}{settings.teacher.name}" if own else settings.teacher.name,
        options={key: value for key, value in options.items() if key not in ("mean", "std")},
        model=model,
        image_size=side,
        data=replace(settings.data, image_size=side),
        description=f"linear probe of {settings.teacher.name}",
        imports=request.imports,
    )
    chosen = next(score for score in fitted.scores if score["C"] == fitted.c)
    summary = {
        "model": written.name,
        "backbone": plain_settings(settings),
        "features": features,
        "C": fitted.c,
        "scores": fitted.scores,
        "validation": {name: chosen[name] for name in ("top1", "nll")} if "nll" in chosen else None,
        "train_samples": len(parts["train"][1]) // settings.views,
        "views": settings.views,
        "features_s": round(features_s, 2),
        "fit_s": round(fit_s, 2),
    }
    _check_agrees(model, backbone, fitted, dataset, side)
    write_teacher(settings.folder, written, dataset, PROBE, facts, summary)
    return ProbeResult(settings.folder, summary)


def plain_settings(settings: ProbeSettings) -> dict[str, Any]:
    """The settings of the backbone as JSON values."""
    return {key: value for key, value in asdict(settings.teacher).items() if key in ("name", "weights", "pretrained")}


@torch.no_grad()
def _check_agrees(model: nn.Module, backbone: Any, fitted: FittedProbe, dataset: Dataset, side: int) -> None:
    """Check that the written model gives the fitted classifier's logits for the backbone's features.

    Raises:
        ModelError: it does not.
    """
    noise = torch.rand(2, dataset.in_chans, side, side, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(backbone).cpu().eval()
    pooled = plain.forward_head(plain.forward_features(noise), pre_logits=True)
    expected, got = pooled @ fitted.weight_KD.T + fitted.bias_K, model(noise)
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-4, atol=1e-4):
        raise ModelError(f"{type(model).__name__} does not classify its pooled features; please report this backbone")
