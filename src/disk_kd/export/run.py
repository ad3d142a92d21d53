"""Export a run's student in a format, and keep the file if it passes: the same logits, or in int8 the same accuracy.

Shapes: B batch, C channels of the image, H and W its height and width, K classes.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from disk_kd.errors import ConfigError, DataError, ModelError, RunError, nearest, one_line
from disk_kd.export.card import model_card
from disk_kd.export.certificate import Certificate, Evidence, certificate_path, certify, sha256
from disk_kd.export.contest import contestants
from disk_kd.export.formats import FORMATS, write_half
from disk_kd.export.int8 import INT8_PACKAGES, QUANTISERS, Int8, costliest_layers, quantise
from disk_kd.export.latency import BATCH, latencies, peak_memory
from disk_kd.export.quantise import CALIBRATION_IMAGES, Classifier
from disk_kd.export.student import Student, read_student
from disk_kd.files import remove_leftovers, temporary_path
from disk_kd.logits import logits_of

TOLERANCE = 1e-4
"""Limit of the difference of a logit, relative to the student's largest logit."""
HALF_TOLERANCE = 1e-2
"""The same limit for weights in half precision."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_CHECKED_BATCHES = (1, 5)
_SEED = 0
MAX_DROP = 1.0
"""Points of top-1 that an export may lose by default."""
_TIMM_FILES = {"config.json", "model.safetensors", "README.md", "certificate.json"}


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Args:
        path: the file or folder.
        difference: largest absolute difference of a logit from the student's, on random images.
        allowed: limit of the difference; None in int8, whose limit is on the accuracy.
        certificate: the certificate beside it; None if none was asked for.
    """

    path: Path
    difference: float
    allowed: float | None
    certificate: Certificate | None = None


def export(
    run: Path,
    kind: str = "safetensors",
    output: Path | None = None,
    *,
    half: bool = False,
    with_normalisation: bool = False,
    overwrite: bool = False,
    imports: Sequence[str] = (),
    int8: bool = False,
    calibration: int = CALIBRATION_IMAGES,
    certified: bool = False,
    max_drop: float = MAX_DROP,
) -> Exported:
    """Export a run's student, RUN/student.safetensors, to another format, if the result gives the same logits.

    The logits are compared on two batches of one and five random images with a fixed seed. A file in int8 gives other
    logits; its accuracy is compared instead, if it is certified. The file has a temporary name until it passes.

    Args:
        run: a run directory, or a file of weights that a run or this function wrote.
        kind: one of `FORMATS`.
        output: the file, or for "timm" the folder; None: RUN/export/MODEL with the format's suffix, in int8
            RUN/export/MODEL-int8.
        half: store weights of convolutions and linear layers in half precision, as `disk_kd.models.convert` does.
        with_normalisation: include the normalisation in the graph, which then takes pixels in [0, 1].
        overwrite: replace an existing output.
        imports: modules, or my_module:make, to import for a model of your own. Those that a run directory's
            configuration names are imported too.
        int8: quantise weights and activations to 8 bits.
        calibration: number of training images that give the ranges of the activations.
        certified: run the file on the validation and test splits, and write a certificate beside it.
        max_drop: points of top-1 by which a certified file may fall below the float student, on either split.

    Raises:
        ConfigError: an unknown format, an option that the format does not have, or a missing package.
        CheckpointError: there are no weights.
        DataError: the run's data is needed, and it is missing or does not fit the student.
        ModelError: the weights do not record their model, the model cannot be traced or quantised, or the logits or
            the accuracy differ too much.
        RunError: `output` exists or must not be replaced.
    """
    _check_options(kind, half, with_normalisation, int8, calibration, max_drop)
    student = read_student(run, imports)
    _check_timm(kind, student)
    suffix = FORMATS[kind].suffix
    name = f"{student.architecture}{'-int8' if int8 else ''}{suffix}"
    target = output or student.weights.parent / "export" / name
    remove_leftovers(target.parent, target.name)
    _check_target(target, suffix, student, overwrite)
    evidence = _evidence(run, student, int8) if int8 or certified else None
    with _renamed_at_end(target) as temporary, TemporaryDirectory() as scratch:
        traced = student.normalised() if with_normalisation else student.model
        quantised: Int8 | None = None
        try:
            if int8 and evidence is not None:
                where = temporary, Path(scratch)
                quantised = quantise(evidence, kind, traced, with_normalisation, calibration, *where)
            else:
                (write_half if half else FORMATS[kind].write)(student, temporary, traced)
        except SafetensorError as error:
            raise RunError(f"cannot write {target} ({one_line(error)}); make room or give another --output") from None
        exported = FORMATS[kind].load(student, temporary)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        difference, limit = _compare(student, exported, with_normalisation, tolerance)
        allowed = None if int8 else limit
        if allowed is not None and not difference <= allowed:
            raise ModelError(
                f"the {kind} export of {student.architecture} gives logits up to {difference:.1e} from the student's, "
                f"{allowed:.1e} is allowed; nothing was kept: try another format"
            )
        certificate = None
        if certified and evidence is not None:
            facts = {"difference": difference, "precision": "int8" if int8 else "float16" if half else "float32"}
            certificate = _certified(evidence, kind, temporary, exported, with_normalisation, facts, quantised, scratch)
            _check_drop(certificate, evidence, max_drop, calibration if int8 else None)
            certificate_path(temporary).write_text(certificate.text(), encoding="utf-8")
            if kind == "timm":
                (temporary / "README.md").write_text(model_card(student, certificate.content), encoding="utf-8")
    return Exported(target, difference, allowed, certificate)


def _check_timm(kind: str, student: Student) -> None:
    """Raise an error if a timm folder cannot hold the student."""
    others = "give --format safetensors, torch.export or onnx"
    if kind == "timm" and "architecture" not in student.settings:
        raise ModelError(f"{student.about['model']} has no timm configuration, which a timm folder needs; {others}")
    if kind == "timm" and "hint" in student.about:
        raise ModelError(
            f"the student of the hint {student.about['hint']['name']} keeps the teacher's classifier, which no timm "
            f"model has; {others}"
        )


def _evidence(run: Path, student: Student, int8: bool) -> Evidence:
    """The run's data and models, for calibration and certificate."""
    purpose = "int8 is calibrated on" if int8 else "the certificate is measured on"
    if not run.is_dir():
        raise ConfigError(f"{purpose} the data of a run, and {run} is a file; give the run directory")
    try:
        evidence = Evidence(run, student)
        if not evidence.splits:
            raise DataError(f"{evidence.dataset.name} has no validation and no test split to measure on")
        return evidence
    except DataError as error:
        further = "" if int8 else "; or give --certify false"
        raise DataError(f"{purpose} the run's data: {error}{further}") from None


def _certified(
    evidence: Evidence,
    kind: str,
    path: Path,
    exported: Classifier,
    pixels: bool,
    facts: dict[str, Any],
    quantised: Int8 | None,
    scratch: str,
) -> Certificate:
    """The certificate of a file that was just written."""
    made, student = FORMATS[kind], evidence.student
    file = path / "model.safetensors" if path.is_dir() else path
    files = [file] if path.is_dir() else [each for each in path.parent.iterdir() if each.name.startswith(path.name)]
    float_file = None if quantised is None else quantised.float_file
    shape = (BATCH, *student.input_size)
    memory = peak_memory(kind, path, shape) if made.graph else None
    facts = {
        "format": kind,
        "file": file.name,
        "bytes": sum(each.stat().st_size for each in files),
        "float_bytes": None if float_file is None else float_file.stat().st_size,
        "sha256": sha256(file),
        "runtime": made.runtime,
        "input": "pixels" if pixels else "normalised",
        **facts,
        "quantisation": None if quantised is None else quantised.record,
        "latency": latencies(contestants(evidence, kind, path, pixels, float_file, Path(scratch))),
        "peak_memory": memory,
    }
    packages = made.packages + (INT8_PACKAGES[kind] if quantised else ())
    return certify(evidence, exported, pixels, facts, packages)


def _check_drop(certificate: Certificate, evidence: Evidence, max_drop: float, calibration: int | None) -> None:
    """Raise an error if a file falls further below the float student than allowed.

    Args:
        certificate: of the file.
        evidence: the run's data and models.
        max_drop: the limit in points.
        calibration: number of calibration images of an int8 file; None: the file is not in int8.
    """
    split, drop = max(certificate.drops.items(), key=lambda item: item[1], default=("", 0.0))
    if drop <= max_drop:
        return
    why = ""
    if calibration is not None:
        why = f"; layers that cost most alone, in points: {costliest_layers(evidence, calibration)}"
    raise ModelError(
        f"top-1 on {split} falls by {drop:.2f} points, --max-drop allows {max_drop:g}{why}; nothing was kept: raise"
        " --max-drop or --calibration"
    )


def _check_options(
    kind: str, half: bool, with_normalisation: bool, int8: bool, calibration: int, max_drop: float
) -> None:
    kinds = list(FORMATS)
    if kind not in FORMATS:
        raise ConfigError(f"no format {kind!r}; {nearest(kind, kinds)}")
    if half and kind != "safetensors":
        raise ConfigError(f"half needs the format safetensors, not {kind}; leave it out")
    if with_normalisation and not FORMATS[kind].graph:
        raise ConfigError(
            f"the format {kind} holds weights and no graph to put the normalisation into; leave it out, or give "
            "--format torch.export or onnx"
        )
    if int8 and kind not in QUANTISERS:
        raise ConfigError(f"int8 needs a graph, which the format {kind} has not; give --format onnx or torch.export")
    if calibration < 1:
        raise ConfigError(f"calibration needs at least one image, not {calibration}; the default is 256")
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"--max-drop is a number of points from 0 to 100, not {max_drop:g}")
    if kind == "onnx":
        _check_packages("the format onnx", ONNX_PACKAGES)
    if int8:
        _check_packages(f"int8 for {kind}", INT8_PACKAGES[kind])


def _check_packages(what: str, names: Sequence[str]) -> None:
    missing, disabled = [], logging.root.manager.disable
    logging.disable(logging.WARNING)  # torchao logs notes on PyTorch
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    logging.disable(disabled)
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(missing)}, not installed here; pip install {' '.join(names)}")


def _check_target(target: Path, suffix: str, student: Student, overwrite: bool) -> None:
    if suffix and target.suffix != suffix:
        raise ConfigError(f"the output {target} must have a name that ends in {suffix}")
    if target.is_symlink() or (target.exists() and not (target.is_file() or target.is_dir())):
        raise RunError(f"{target} is a link, a device or a pipe, which is not replaced; give another --output")
    if not target.exists():
        return
    if target.samefile(student.weights):
        raise RunError(f"the output {target} is what is exported; give --output another name")
    if not overwrite:
        raise RunError(f"{target} exists; give --overwrite to replace it, or --output another name")
    if target.is_dir() == bool(suffix):
        raise RunError(f"{target} is a {'folder' if suffix else 'file'}; give --output another name")
    others = sorted({path.name for path in target.iterdir()} - _TIMM_FILES) if target.is_dir() else []
    if others:
        raise RunError(
            f"{target} is not replaced, because it contains {others[0]}, which is not part of an export; give another"
            " --output"
        )


@contextmanager
def _renamed_at_end(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`. At the end of the block it is synced and renamed to `target`.

    If the block raises an error, it is removed and `target` is unchanged.
    """
    target = Path(os.path.abspath(target))  # so that "." has a name too
    folder = temporary_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise RunError(f"cannot write in {target.parent} ({error.strerror}); give another --output") from None
    try:
        yield folder / target.name
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        # The file itself last: very large ONNX models have their weights in a second one.
        written = [path for path in sorted(folder.iterdir(), reverse=True) if path.name.startswith(target.name)]
        before = folder / f"old-{target.name}"
        try:
            if target.is_dir():
                target.rename(before)
            for path in written:
                os.replace(path, target.with_name(path.name))
            if certificate_path(target).name not in {path.name for path in written} and not target.is_dir():
                certificate_path(target).unlink(missing_ok=True)  # it is of the file that was replaced
        except BaseException:
            if before.exists():
                before.rename(target)
            raise
    finally:
        shutil.rmtree(folder)


@torch.no_grad()
def _compare(student: Student, exported: Classifier, pixels: bool, tolerance: float) -> tuple[float, float]:
    """The largest difference of a logit on random images, and its limit.

    Raises:
        ModelError: the student's own logits are not finite.
    """
    mean, std = (torch.tensor(student.about[name]).view(-1, 1, 1) for name in ("mean", "std"))
    generator = torch.Generator().manual_seed(_SEED)
    differences, sizes = [], []
    for count in _CHECKED_BATCHES:
        pixels_BCHW = torch.rand(count, *student.input_size, generator=generator)
        images_BCHW = (pixels_BCHW - mean) / std
        logits_BK = logits_of(student.model(images_BCHW), student.model)
        if not logits_BK.isfinite().all():
            raise ModelError(f"{student.weights} gives logits that are not finite; export another run")
        written_BK = logits_of(exported(pixels_BCHW if pixels else images_BCHW), student.model)
        differences.append((written_BK - logits_BK).abs().max())
        sizes.append(logits_BK.abs().max())
    return float(torch.stack(differences).max()), tolerance * float(torch.stack(sizes).max())
