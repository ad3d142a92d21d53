"""What a run changes of a task, apart from the teacher, which it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from timm.utils import unwrap_model
from torch import Tensor

from disk_kd.errors import CheckpointError
from disk_kd.tasks import StudentTask


def task_state(task: StudentTask) -> dict[str, Tensor]:
    """State of all that a run changes: student, helper, average, price. The teacher is not in it."""
    with _unwrapped(task):
        return {name: value for name, value in task.state_dict().items() if not name.startswith("teacher.")}


def load_task_state(task: StudentTask, state: Mapping[str, Tensor]) -> None:
    """Put `task_state` back.

    Raises:
        CheckpointError: the names or shapes are another task's.
    """
    try:
        with _unwrapped(task):
            missing, unexpected = task.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is of another model: {str(error).splitlines()[-1].strip()}") from None
    wrong = [name for name in missing if not name.startswith("teacher.")] + unexpected
    if wrong:
        raise CheckpointError(f"the checkpoint is of another method or model: {wrong[0]} does not fit")


@contextmanager
def _unwrapped(task: StudentTask) -> Iterator[None]:
    """The task without a data-parallel or compiled wrapper, whose name would stand in all others."""
    wrapped = task.trainable_module
    task.trainable_module = unwrap_model(wrapped)
    try:
        yield
    finally:
        task.trainable_module = wrapped
