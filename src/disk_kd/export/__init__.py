"""Export of a run's student to safetensors, a timm folder, torch.export or ONNX, with a check of its logits."""

from __future__ import annotations

from disk_kd.export.formats import EXTRA_FILE, FORMATS
from disk_kd.export.run import HALF_TOLERANCE, ONNX_PACKAGES, TOLERANCE, Exported, export
from disk_kd.export.student import Normalised, Student, read_student

__all__ = [
    "EXTRA_FILE",
    "FORMATS",
    "HALF_TOLERANCE",
    "ONNX_PACKAGES",
    "TOLERANCE",
    "Exported",
    "Normalised",
    "Student",
    "export",
    "read_student",
]
