"""The frozen teacher, its stored outputs, and the features that helpers read."""

from disk_kd.teacher.class_names import class_names, map_labels
from disk_kd.teacher.ensemble import AnyTeacher, Ensemble, frozen_teacher
from disk_kd.teacher.features import (
    feature_shapes,
    feature_sizes,
    fixed_image_size,
    forward_with_features,
    normalisation,
)
from disk_kd.teacher.frozen import Teacher
from disk_kd.teacher.hashing import weights_hash
from disk_kd.teacher.joint_store import AnyStore, JointStore, joint_store
from disk_kd.teacher.label_map import LabelMap
from disk_kd.teacher.manifest import teacher_facts
from disk_kd.teacher.store import TeacherStore, store_bytes

__all__ = [
    "AnyStore",
    "AnyTeacher",
    "Ensemble",
    "JointStore",
    "LabelMap",
    "Teacher",
    "TeacherStore",
    "class_names",
    "feature_shapes",
    "feature_sizes",
    "fixed_image_size",
    "forward_with_features",
    "frozen_teacher",
    "joint_store",
    "map_labels",
    "normalisation",
    "store_bytes",
    "teacher_facts",
    "weights_hash",
]
