"""The frozen teacher, its stored outputs, and the features that helpers read."""

from disk_kd.teacher.features import (
    feature_shapes,
    feature_sizes,
    fixed_image_size,
    forward_with_features,
    normalisation,
)
from disk_kd.teacher.frozen import Teacher
from disk_kd.teacher.hashing import weights_hash
from disk_kd.teacher.manifest import teacher_facts
from disk_kd.teacher.store import TeacherStore, store_bytes

__all__ = [
    "Teacher",
    "TeacherStore",
    "feature_shapes",
    "feature_sizes",
    "fixed_image_size",
    "forward_with_features",
    "normalisation",
    "store_bytes",
    "teacher_facts",
    "weights_hash",
]
