"""Checks that the labels of a teacher and of a dataset mean the same classes."""

from __future__ import annotations

from collections.abc import Sequence

from disk_kd.errors import DataError


def check_labels(dataset_names: Sequence[str], teacher_names: Sequence[str]) -> None:
    """Raise an error if the teacher's labels mean other classes than the dataset's.

    Args:
        dataset_names, teacher_names: the name of each label, in label order.

    Raises:
        DataError: a label or the number of classes differs. The message names the first difference.
    """
    if len(dataset_names) != len(teacher_names):
        counts = f"{len(dataset_names)} classes, the teacher was trained on {len(teacher_names)}"
        raise DataError(f"the dataset has {counts}; choose a teacher of this dataset")
    for label, (ours, theirs) in enumerate(zip(dataset_names, teacher_names, strict=True)):
        if ours != theirs:
            other = "in another order" if sorted(dataset_names) == sorted(teacher_names) else "of other names"
            raise DataError(
                f"label {label} is {ours!r} in the dataset and {theirs!r} for the teacher (classes {other}); "
                "choose a teacher of this dataset"
            )
