"""The stores of several teachers, read as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from disk_kd.teacher.store import TeacherStore

Join = Callable[[Sequence[dict[str, Tensor]]], dict[str, Tensor]]
"""Makes the outputs of several teachers one."""


class JointStore:
    """Reads the stored outputs of several teachers and averages them, as `Ensemble` does of running teachers.

    Each member's store is its own: a run of one teacher reads the same files.

    Args:
        members: stores of the same samples and views.
        join: makes the outputs of the members one: `Ensemble.joined`.
    """

    def __init__(self, members: Sequence[TeacherStore], join: Join) -> None:
        self.members, self._join = tuple(members), join

    def read(self, ids_B: Tensor, view: int, device: torch.device | str) -> dict[str, Tensor]:
        """The joint outputs for some samples under one view; arguments as for `TeacherStore.read`.

        Raises:
            CheckpointError: a store has no such view.
        """
        return self._join([member.read(ids_B, view, device) for member in self.members])


AnyStore = TeacherStore | JointStore
"""What gives stored outputs: `read` and `members` are the same."""


def joint_store(members: Sequence[TeacherStore], join: Join) -> AnyStore:
    """The store of one teacher as it is, or those of several as one."""
    return members[0] if len(members) == 1 else JointStore(members, join)
