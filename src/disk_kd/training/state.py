"""The state of a task that a run changes: everything except the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from timm.utils import unwrap_model
from torch import Tensor

from disk_kd.errors import CheckpointError
from disk_kd.tasks import StudentTask


def task_state(task: StudentTask) -> dict[str, Tensor]:
    """State of student, helper, moving average and price, without the teacher."""
    with _unwrapped(task):
        return {name: value for name, value in task.state_dict().items() if not name.startswith("teacher.")}


def load_task_state(task: StudentTask, state: Mapping[str, Tensor]) -> None:
    """Load a state from `task_state`.

    Raises:
        CheckpointError: the names or shapes belong to another task.
    """
    try:
        with _unwrapped(task):
            missing, unexpected = task.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint belongs to another model: {str(error).splitlines()[-1].strip()}"
        ) from None
    wrong = [name for name in missing if not name.startswith("teacher.")] + unexpected
    if wrong:
        raise CheckpointError(f"the checkpoint belongs to another method or model: {wrong[0]} does not fit")


@contextmanager
def _unwrapped(task: StudentTask) -> Iterator[None]:
    """The task without a data-parallel or compiled wrapper, whose prefix would be in all names."""
    wrapped = task.trainable_module
    task.trainable_module = unwrap_model(wrapped)
    try:
        yield
    finally:
        task.trainable_module = wrapped
