"""Quantise a student to int8 for a format: calibration, choice and record.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from disk_kd.export.certificate import Evidence
from disk_kd.export.formats import EXTRA_FILE, FORMATS, description
from disk_kd.export.int8_learned import LearnedQuantiser
from disk_kd.export.int8_onnx import OnnxQuantiser
from disk_kd.export.int8_torch import TorchQuantiser
from disk_kd.export.quantise import (
    COMPARED_IMAGES,
    Quantiser,
    check_quantisable,
    in_batches,
    layer_costs,
    measure_choices,
)

FLOAT_FILE = "float"
"""Name of the float graph beside the quantised file, in the temporary folder."""


def _onnx(evidence: Evidence, traced: nn.Module, images_NCHW: Tensor, folder: Path) -> Quantiser:
    return OnnxQuantiser(folder / f"{FLOAT_FILE}.onnx", images_NCHW, folder)


def _torch(evidence: Evidence, traced: nn.Module, images_NCHW: Tensor, folder: Path) -> Quantiser:
    return TorchQuantiser(traced, images_NCHW, {EXTRA_FILE: description(evidence.student, traced)})


QUANTISERS: dict[str, Callable[[Evidence, nn.Module, Tensor, Path], Quantiser]] = {
    "onnx": _onnx,
    "torch.export": _torch,
}
"""The quantiser of each format that has one."""
INT8_PACKAGES = {"onnx": (), "torch.export": ("torchao",)}
"""Packages that int8 needs, beyond those of the format."""


@dataclass(frozen=True)
class Int8:
    """A student in int8.

    Attributes:
        record: what the certificate says of the quantisation.
        float_file: the float graph in the same format, for comparisons.
    """

    record: dict[str, Any]
    float_file: Path


def quantise(
    evidence: Evidence, kind: str, traced: nn.Module, pixels: bool, count: int, path: Path, folder: Path
) -> Int8:
    """Write a student in int8.

    Args:
        evidence: the run's data and student.
        kind: the format, one of `QUANTISERS`.
        traced: the model to trace.
        pixels: whether it takes pixels in [0, 1].
        count: number of calibration images, from the training split.
        path: the file to write.
        folder: folder for temporary files.

    Raises:
        DataError: there are no calibration images.
        ModelError: the model cannot be quantised.
    """
    student = evidence.student
    check_quantisable(student.model, student.architecture)
    calibration, _ = evidence.training_images(count, pixels)
    where, images, targets = evidence.compared_images(COMPARED_IMAGES, pixels)
    _, normalised, _ = evidence.compared_images(COMPARED_IMAGES, pixels=False)
    float_file = folder / f"{FLOAT_FILE}{FORMATS[kind].suffix}"
    FORMATS[kind].write(student, float_file, traced)
    learned = LearnedQuantiser(student, kind, pixels) if "int8" in student.about else None
    quantiser: Quantiser = learned or QUANTISERS[kind](evidence, traced, calibration, folder)
    float_NK = in_batches(evidence.float_classifier, normalised)
    measured, best, chosen = measure_choices(
        quantiser,
        lambda file: FORMATS[kind].load(student, file),
        folder,
        FORMATS[kind].suffix,
        images,
        targets,
        float_NK,
    )
    shutil.copyfile(chosen, path)
    record = {
        "library": quantiser.library,
        "calibration_images": 0 if learned else len(calibration),
        "calibration_split": "train",
        "compared_on": {"split": where, "images": len(images)},
        "choices": [
            {
                "name": one.choice.name,
                "top1": one.top1,
                "agreement_float": one.agreement,
                "float_layers": list(one.float_layers),
                "portable": one.choice.portable,
                "chosen": place == best,
            }
            for place, one in enumerate(measured)
        ],
        "float_layers": list(measured[best].float_layers),
    }
    if learned is not None:
        trained_N, written_N = (
            in_batches(learned.as_trained, normalised).argmax(1),
            in_batches(FORMATS[kind].load(student, path), images).argmax(1),
        )
        record["different_from_training"] = int((trained_N != written_N).sum())
    return Int8(record, float_file)


def costliest_layers(evidence: Evidence, count: int, most: int = 3) -> str:
    """The layers that cost most if they alone are in int8, as text."""
    calibration, _ = evidence.training_images(count, pixels=False)
    _, images, targets = evidence.compared_images(COMPARED_IMAGES // 4, pixels=False)
    costs = layer_costs(evidence.student.model, calibration, images, targets)
    return ", ".join(f"{name} ({lost:+.2f})" for name, lost in costs[:most])
