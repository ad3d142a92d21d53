"""A trained model in any format, with all that it takes to prepare its images and to read its outputs.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from disk_kd.build import STUDENT
from disk_kd.errors import CheckpointError, ConfigError, ModelError, nearest, one_line
from disk_kd.export import EXTRA_FILE, Classifier, open_onnx, open_torch_export, read_student
from disk_kd.files import user_path
from disk_kd.inference.archive import check_archive
from disk_kd.logits import logits_of
from disk_kd.models import shipped_weights
from disk_kd.models.about import METADATA, read_about
from disk_kd.recipe import is_run_config, load_recipe
from disk_kd.trained import normalisation, trained_model

_NEEDED = ("in_chans", "image_size", "classes", "mean", "std")


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained model.

    Attributes:
        name: for messages.
        logits: maps images (B, C, H, W) to logits (B, K).
        classes: names in the order of the labels.
        in_chans: 1 (grey) or 3 (colour).
        image_size: side of its images in pixels.
        crop_pct: fraction of the shorter side that the centre crop keeps.
        mean, std: normalisation of each channel, for pixels in [0, 1].
        pixels: whether it takes pixels in [0, 1] and normalises them itself.
        temperature: its logits are divided by it; None: its probabilities are not calibrated.
        grey_bits: bits of grey images with more than 8 bits, as in the run's data.
    """

    name: str
    logits: Classifier
    classes: tuple[str, ...]
    in_chans: int
    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: bool = False
    temperature: float | None = None
    grey_bits: int | None = None


def open_classifier(model: str | Path, *, pretrained: bool = False, imports: Iterable[str] = ()) -> TrainedClassifier:
    """The model of a run, of a file, or of timm.

    Args:
        model: a run directory; a file of weights that a run or export wrote; an exported timm folder, .onnx or .pt2
            file; cifar_resnet10_l or cifar_resnet10_s; or with `pretrained` the name of a timm model.
        pretrained: allow timm's pretrained weights, which timm downloads.
        imports: modules, or my_module:make, to import for a model of your own.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
        ModelError: the file does not describe its model, or the model takes no images of files.
        ConfigError: the name is unknown, or a package is missing.
    """
    path = user_path(model)
    if path.is_dir() and not (path / STUDENT).is_file() and (path / "config.json").is_file():
        found = _of_timm(str(model), f"local-dir:{path}")
    elif path.suffix in (".onnx", ".pt2"):
        found = _of_graph(path)
    elif path.exists() or path.suffix or len(path.parts) > 1:
        found = _of_weights(path, imports)
    elif (shipped := shipped_weights(str(model))) is not None:
        found = _of_shipped(str(model), shipped)
    elif pretrained:
        found = _of_timm(str(model), str(model))
    else:
        raise CheckpointError(
            f"no run, weights or exported file at {model}; for timm's pretrained model of this name give --pretrained"
        )
    if found.in_chans not in (1, 3):
        raise ModelError(f"{found.name} takes images of {found.in_chans} channels; image files have 1 or 3")
    return found


def _described(name: str, logits: Classifier, about: dict[str, Any], **further: Any) -> TrainedClassifier:
    """A classifier with what its file records."""
    missing = [key for key in _NEEDED if key not in about]
    if missing:
        raise ModelError(
            f"{name} does not record its {' and '.join(missing)}; give a file that disk-kd export or a run wrote"
        )
    try:
        found = TrainedClassifier(
            name,
            logits,
            tuple(map(str, list(about["classes"]))),
            int(about["in_chans"]),
            int(about["image_size"]),
            float(about.get("crop_pct", 1.0)),
            tuple(map(float, about["mean"])),
            tuple(map(float, about["std"])),
            about.get("input") == "pixels",
            None if about.get("temperature") is None else float(about["temperature"]),
            grey_bits=about.get("grey_bits"),
            **further,
        )
        _check_numbers(found)
    except (TypeError, ValueError):
        raise ModelError(f"the description in {name} cannot be read; export the model again") from None
    return found


def _check_numbers(found: TrainedClassifier) -> None:
    """Raise a ValueError for a description whose numbers no export writes."""
    temperature = 1.0 if found.temperature is None else found.temperature
    good = found.image_size > 0 and 0 < found.crop_pct <= 1 and 0 < temperature < math.inf
    good = good and len(found.mean) == len(found.std) == found.in_chans and all(0 < std < math.inf for std in found.std)
    if not good or found.grey_bits not in (None, *range(1, 17)):
        raise ValueError


def _of_weights(path: Path, imports: Iterable[str]) -> TrainedClassifier:
    student = read_student(path, list(imports))
    config = student.weights.parent / "config.yaml"
    data = load_recipe(config).get("data", {}) if is_run_config(config) else {}
    about = student.about | {"grey_bits": data.get("grey_bits"), "input": "normalised"}
    return _described(str(path), _in_torch(student.model), about)


def _of_shipped(name: str, weights: Path) -> TrainedClassifier:
    about = read_about(weights)
    sizes = len(about["classes"]), about["in_chans"]
    model = trained_model(name, about["options"], weights, *sizes, about).eval()
    mean, std = normalisation(model)
    return _described(name, _in_torch(model), about | {"mean": mean, "std": std})


def _of_timm(name: str, source: str) -> TrainedClassifier:
    if ":" not in source and not timm.is_model(source):
        raise ConfigError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    try:
        model: Any = timm.create_model(source, pretrained=True)
    except Exception as error:  # timm raises errors of many kinds for files and downloads
        raise CheckpointError(f"cannot load {name} ({one_line(error)}); give a folder of disk-kd export") from None
    settings = timm.data.resolve_data_config(model=model)
    channels, height, width = settings["input_size"]
    if height != width:
        raise ModelError(f"{name} takes images of {height}x{width} pixels; only square images are prepared here")
    names = model.pretrained_cfg.get("label_names") or _imagenet(model.num_classes)
    about = {
        "classes": names,
        "in_chans": channels,
        "image_size": height,
        "crop_pct": settings["crop_pct"],
        "mean": _per_channel(settings["mean"], channels),
        "std": _per_channel(settings["std"], channels),
    }
    return _described(name, _in_torch(model.eval()), about)


def _imagenet(count: int) -> list[str]:
    """Names of ImageNet's classes, or numbers for another number of classes."""
    if count != 1000:
        return [str(label) for label in range(count)]
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(label) for label in range(count)]


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    return [sum(values) / len(values)] if channels == 1 else list(values)


def _in_torch(model: nn.Module) -> Classifier:
    return lambda images: logits_of(model(images), model)


def _of_graph(path: Path) -> TrainedClassifier:
    if not path.is_file():
        raise CheckpointError(f"no file at {path}; give a file that disk-kd export wrote")
    return (_of_onnx if path.suffix == ".onnx" else _of_torch_export)(path)


def _of_onnx(path: Path) -> TrainedClassifier:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("an ONNX file needs onnxruntime, not installed here; pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(METADATA)
        inputs, outputs = ([each.name for each in part()] for part in (session.get_inputs, session.get_outputs))
    except Exception as error:  # onnxruntime has errors of its own for each kind of damage
        raise CheckpointError(f"{path} cannot be read as ONNX ({one_line(error)}); export it again") from None
    if inputs != ["images"] or outputs != ["logits"] or text is None:
        raise ModelError(
            f"{path} is not an ONNX file of disk-kd export: it has the inputs {', '.join(inputs)[:100]} and"
            f" {'a' if text else 'no'} description of its classes; export the model with disk-kd export --format onnx"
        )
    return _described(str(path), open_onnx(path, torch.get_num_threads()), _json(path, text))


def _of_torch_export(path: Path) -> TrainedClassifier:
    check_archive(path)
    extra = {EXTRA_FILE: ""}
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch logs the graph of a file that it cannot read
    try:
        model = open_torch_export(path)
        torch.export.load(path, extra_files=extra)
    except Exception as error:  # torch has errors of many kinds for a damaged archive
        raise CheckpointError(
            f"{path} cannot be read as a torch.export archive ({one_line(error)}); export it again"
        ) from None
    finally:
        logging.disable(disabled)
    if not extra[EXTRA_FILE]:
        raise ModelError(f"{path} has no description of its classes; export it with disk-kd export")
    return _described(str(path), model, _json(path, extra[EXTRA_FILE]))


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise ModelError(f"the description in {path} cannot be read; export the model again")
    return about
