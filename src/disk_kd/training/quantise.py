"""Fake quantisation of the student in the last epochs of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import nn

from disk_kd import ranks
from disk_kd.errors import CheckpointError, ConfigError
from disk_kd.fake_int8 import FakeInt8, find_layout
from disk_kd.tasks import StudentTask
from disk_kd.training.settings import TrainSettings

RANGES = "int8"
"""Key of the ranges of activations in the metadata of weights."""
_PART = "fake_int8"
"""Name of the part of a task that holds the ranges. It is in the checkpoints as all parts are."""
DEFAULT_SHARE = 0.2
"""Share of the student epochs that are quantised by default."""


def prepare_quantisation(task: StudentTask, settings: TrainSettings, student: nn.Module, shape: Sequence[int]) -> None:
    """Prepare a task for fake quantisation, if the settings ask for it. Nothing is rounded before `set_quantised`.

    Args:
        task: gets a part with the ranges of its activations.
        settings: say whether the student is quantised.
        student: the evaluated model: the student, or its moving average.
        shape: (C, H, W) of the images.

    Raises:
        ConfigError: there are several ranks.
        ModelError: the student has nothing to quantise.
    """
    if settings.quantise is None:
        return
    if ranks.size() > 1:
        raise ConfigError(
            "train.quantise measures the ranges of activations on one rank, not on several; start it without torchrun"
        )
    fake = FakeInt8(find_layout(task.student, shape)).to(task.device)
    for model in dict.fromkeys((task.student, student)):
        fake.attach(model)
    task.add_module(_PART, fake)


def first_quantised_epoch(settings: TrainSettings) -> int:
    """Number of student epochs before the first quantised one."""
    count = settings.quantise_epochs or max(1, round(DEFAULT_SHARE * settings.epochs))
    return settings.epochs - count


def set_quantised(task: StudentTask, settings: TrainSettings, student_epochs: int) -> bool:
    """Round from the first quantised epoch on.

    Args:
        task: of `prepare_quantisation`. Others stay as they are.
        settings: of the run.
        student_epochs: those that are finished.

    Returns:
        Whether the next student epoch is the first quantised one. Earlier checkpoints are then out of the selection.
    """
    fake = _part(task)
    if fake is None:
        return False
    first = first_quantised_epoch(settings)
    fake.active = student_epochs >= first
    return student_epochs == first


def ranges_of(task: StudentTask) -> dict[str, str]:
    """The ranges of a task's activations as metadata of a file of weights; empty if it is not quantised."""
    fake = _part(task)
    return {} if fake is None or not fake.active else {RANGES: json.dumps(fake.record())}


def load_ranges(task: StudentTask, metadata: Mapping[str, str]) -> None:
    """Restore the ranges that `ranges_of` returned. Nothing happens if the task is not quantised.

    Raises:
        CheckpointError: they are missing, damaged, or belong to another model.
    """
    fake = _part(task)
    if fake is None:
        return
    try:
        record = json.loads(metadata[RANGES])
    except (KeyError, ValueError):
        raise CheckpointError(
            "the best checkpoint has no ranges of activations; delete the run and start again"
        ) from None
    fake.load_record(record)


def _part(task: StudentTask) -> FakeInt8 | None:
    part = getattr(task, _PART, None)
    return part if isinstance(part, FakeInt8) else None
