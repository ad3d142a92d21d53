"""The models whose latency a certificate compares: the exported file, the float student and the teacher.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from disk_kd.errors import DiskKDError
from disk_kd.export.certificate import Evidence
from disk_kd.export.formats import FORMATS, open_onnx, open_torch_export, write_onnx, write_torch_export
from disk_kd.export.latency import Contestant
from disk_kd.export.quantise import Classifier
from disk_kd.logits import logits_of

_GRAPHS: dict[str, tuple[Callable[..., None], Callable[[Path, int], Classifier]]] = {
    "onnx": (write_onnx, open_onnx),
    "torch.export": (write_torch_export, open_torch_export),
}
"""How a model of each format with a graph is written and opened with a number of threads."""


def contestants(
    evidence: Evidence, kind: str, path: Path, pixels: bool, float_file: Path | None, folder: Path
) -> list[Contestant]:
    """The exported file, the float student and the teacher, if there is one.

    The float student of an int8 file is the float graph in the same runtime; of another file, the student in PyTorch.
    The teacher is a graph in the same runtime if it can be traced; else it runs in PyTorch.

    Args:
        evidence: the run's models.
        kind: the format.
        path: the exported file.
        pixels: whether it takes pixels in [0, 1].
        float_file: the float graph of an int8 file.
        folder: folder for temporary files.
    """
    student, shape = evidence.student, evidence.student.input_size
    runtime = FORMATS[kind].runtime
    if kind in _GRAPHS:
        _, opened = _GRAPHS[kind]
        own = Contestant("export", runtime, lambda threads: opened(path, threads), shape)
    else:
        exported = FORMATS[kind].load(student, path)
        own = Contestant("export", runtime, lambda _: exported, shape)
    if float_file is None:
        other = Contestant("float", "PyTorch", lambda _: evidence.float_classifier, shape)
    else:
        other = Contestant("float", runtime, lambda threads: opened(float_file, threads), shape)
    teacher = _teacher(evidence, kind, folder)
    return [own, other, *([] if teacher is None else [teacher])]


def _teacher(evidence: Evidence, kind: str, folder: Path) -> Contestant | None:
    teacher = evidence.teacher
    if teacher is None:
        return None
    alone = _alone(teacher)
    channels, *sides = evidence.student.input_size
    if alone is None:  # several teachers, or one that maps its classes to those of the data
        return Contestant(
            "teacher", "PyTorch", lambda _: lambda images: teacher(images)["logits"], (channels, sides[0], sides[1])
        )
    model, size = alone
    shape = (channels, *(size or (sides[0], sides[1])))
    if kind in _GRAPHS:
        write, opened = _GRAPHS[kind]
        file = folder / f"teacher{FORMATS[kind].suffix}"
        try:
            write(model, shape, file, "{}", "the teacher")
            return Contestant("teacher", FORMATS[kind].runtime, lambda threads: opened(file, threads), shape)
        except DiskKDError:
            pass
    return Contestant("teacher", "PyTorch", lambda _: lambda images: logits_of(model(images), model), shape)


def _alone(teacher: nn.Module) -> tuple[nn.Module, tuple[int, int] | None] | None:
    """The model of a single teacher and the size of its images (None: the student's); None for anything else."""
    model, size = getattr(teacher, "model", None), getattr(teacher, "image_size", None)
    if not isinstance(model, nn.Module) or getattr(teacher, "label_map", None) is not None:
        return None
    return model, size
