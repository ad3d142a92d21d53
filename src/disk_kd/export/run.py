"""Export a run's student in a format, and keep the file if it gives the same logits.

Shapes: B batch, C channels of the image, H and W its height and width, K classes.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from disk_kd.errors import ConfigError, ModelError, RunError, nearest, one_line
from disk_kd.export.formats import FORMATS, Classifier, write_half
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
_TIMM_FILES = {"config.json", "model.safetensors", "README.md"}


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Args:
        path: the file or folder.
        difference: largest absolute difference of a logit from the student's.
        allowed: limit of the difference.
    """

    path: Path
    difference: float
    allowed: float


def export(
    run: Path,
    kind: str = "safetensors",
    output: Path | None = None,
    *,
    half: bool = False,
    with_normalisation: bool = False,
    overwrite: bool = False,
    imports: Sequence[str] = (),
) -> Exported:
    """Export a run's student, RUN/student.safetensors, to another format, if the result gives the same logits.

    The logits are compared on two batches of one and five random images with a fixed seed. The file has a temporary
    name until it passes.

    Args:
        run: a run directory, or a file of weights that a run or this function wrote.
        kind: one of `FORMATS`.
        output: the file, or for "timm" the folder; None: RUN/export/MODEL with the format's suffix.
        half: store weights of convolutions and linear layers in half precision, as `disk_kd.models.convert` does.
        with_normalisation: include the normalisation in the graph, which then takes pixels in [0, 1].
        overwrite: replace an existing output.
        imports: modules, or my_module:make, to import for a model of your own. Those that a run directory's
            configuration names are imported too.

    Raises:
        ConfigError: an unknown format, an option that the format does not have, or a missing package.
        CheckpointError: there are no weights.
        ModelError: the weights do not record their model, the model cannot be traced, or the logits differ.
        RunError: `output` exists or must not be replaced.
    """
    _check_options(kind, half, with_normalisation)
    student = read_student(run, imports)
    if kind == "timm" and "architecture" not in student.settings:
        raise ModelError(
            f"{student.about['model']} has no timm configuration, which a timm folder needs; "
            "give --format safetensors, torch.export or onnx"
        )
    if kind == "timm" and "hint" in student.about:
        raise ModelError(
            f"the student of the hint {student.about['hint']['name']} keeps the teacher's classifier, which no timm "
            "model has; give --format safetensors, torch.export or onnx"
        )
    suffix = FORMATS[kind].suffix
    target = output or student.weights.parent / "export" / f"{student.architecture}{suffix}"
    remove_leftovers(target.parent, target.name)
    _check_target(target, suffix, student, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _renamed_at_end(target) as temporary:
        traced = student.normalised() if with_normalisation else student.model
        write = write_half if half else FORMATS[kind].write
        try:
            write(student, temporary, traced)
        except SafetensorError as error:
            raise RunError(f"cannot write {target} ({one_line(error)}); make room or give another --output") from None
        exported = FORMATS[kind].load(student, temporary)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        difference, allowed = _compare(student, exported, with_normalisation, tolerance)
        if not difference <= allowed:
            raise ModelError(
                f"the {kind} export of {student.architecture} gives logits up to {difference:.1e} from the student's, "
                f"{allowed:.1e} is allowed; nothing was kept: try another format"
            )
    return Exported(target, difference, allowed)


def _check_options(kind: str, half: bool, with_normalisation: bool) -> None:
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
    if kind == "onnx":
        _check_packages(ONNX_PACKAGES)


def _check_packages(names: Sequence[str]) -> None:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"the format onnx needs {' and '.join(missing)}, not installed here; pip install {' '.join(ONNX_PACKAGES)}"
        )


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
    folder.mkdir()
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
