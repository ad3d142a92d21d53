"""Export of a run's student to safetensors, a timm folder, torch.export or ONNX, in float or int8, with a check and a
certificate.
"""

from __future__ import annotations

from disk_kd.export.certificate import Certificate, certificate_path, read_certificates
from disk_kd.export.formats import EXTRA_FILE, FORMATS, open_onnx, open_torch_export
from disk_kd.export.push import check_name, push
from disk_kd.export.quantise import CALIBRATION_IMAGES, Classifier
from disk_kd.export.run import HALF_TOLERANCE, MAX_DROP, ONNX_PACKAGES, TOLERANCE, Exported, export
from disk_kd.export.student import Normalised, Student, read_student

__all__ = [
    "CALIBRATION_IMAGES",
    "EXTRA_FILE",
    "FORMATS",
    "HALF_TOLERANCE",
    "MAX_DROP",
    "ONNX_PACKAGES",
    "TOLERANCE",
    "Certificate",
    "Classifier",
    "Exported",
    "Normalised",
    "Student",
    "certificate_path",
    "check_name",
    "export",
    "open_onnx",
    "open_torch_export",
    "push",
    "read_certificates",
    "read_student",
]
