"""Another label set: a teacher's classes are kept, renamed or merged to those of the data.

Shape letters: B batch, C classes of the data, K classes of the teacher, M most classes in a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from disk_kd.errors import ModelError


class LabelMap(nn.Module):
    """Logits of the data's classes from the logits of a teacher with other classes.

        z'_c = log sum_{k in group c} exp(z_k)

    So softmax(z')_c is the probability of the group c among all groups: the probabilities of merged classes are added,
    and those of kept classes are divided by the probability of all kept classes. A group of one class keeps its logit
    unchanged. The sum is computed in float32.

    Args:
        groups: C groups of numbers of the teacher's classes, one for each class of the data. They do not overlap.
        num_classes: K.
        names: the names of the groups' classes, for reports; None: their numbers.

    Raises:
        ModelError: a group is empty, a number is not from 0 to K - 1, or a class is in two groups.

    Example:
        >>> import torch
        >>> LabelMap([[2], [0, 1]], num_classes=3)(torch.tensor([[1.0, 1.0, 5.0]]))
        tensor([[5.0000, 1.6931]])
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], num_classes: int, names: Sequence[Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.groups = tuple(tuple(group) for group in groups)
        self.num_theirs = num_classes
        _check_groups(self.groups, num_classes)
        self.names = tuple(tuple(map(str, group)) for group in (groups if names is None else names))
        widest = max(map(len, self.groups))
        index = [[*group, *[0] * (widest - len(group))] for group in self.groups]
        absent = [[0.0] * len(group) + [-math.inf] * (widest - len(group)) for group in self.groups]
        self.index_CM: Tensor
        self.absent_CM: Tensor
        self.register_buffer("index_CM", torch.tensor(index), persistent=False)
        self.register_buffer("absent_CM", torch.tensor(absent), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits of the data's classes, float32 (..., C), for the teacher's logits (..., K).

        Raises:
            ModelError: the logits are not of K classes.
        """
        if logits.shape[-1] != self.num_theirs:
            raise ModelError(
                f"the teacher gives {logits.shape[-1]} logits, but teacher.classes maps {self.num_theirs} classes"
            )
        return (logits.float()[..., self.index_CM] + self.absent_CM).logsumexp(-1)


def _check_groups(groups: Sequence[Sequence[int]], num_classes: int) -> None:
    used: set[int] = set()
    for label, group in enumerate(groups):
        if not group:
            raise ModelError(f"no class of the teacher is mapped to class {label}; give at least one")
        for number in group:
            if not 0 <= number < num_classes:
                raise ModelError(f"the teacher has classes 0 to {num_classes - 1}, not {number}")
            if number in used:
                raise ModelError(f"class {number} of the teacher is mapped twice; its probability counts once")
            used.add(number)
    if not groups:
        raise ModelError("no class of the teacher is mapped; give a group for each class of the data")
