"""Several teachers as one: each gives its outputs for the batch, and their predictions are averaged.

Shape letters: M teachers, B batch, C classes, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn

from disk_kd.errors import ConfigError, ModelError, nearest
from disk_kd.teacher.frozen import Teacher

Combine = Literal["probabilities", "logits"]
LOGITS = frozenset({"logits"})


class Average:
    """The weighted average of several teachers' predictions, with w_m > 0 divided by their sum.

        probabilities:  z_c = log sum_m w_m softmax(z_m)_c
        logits:         z_c = sum_m w_m (z_mc - log sum_k exp(z_mk))

    So softmax(z) is the arithmetic mean of the teachers' probabilities, or their geometric mean, normalised. Both are
    computed in float32. The mean is taken at temperature 1: a method with temperature T takes softmax(z / T). Of
    logits, this is the geometric mean of the probabilities at T. Of probabilities, it is the tempered mean, not the
    mean of tempered probabilities.

    Args:
        weights: w_m, one for each teacher.
        combine: what is averaged.

    Raises:
        ConfigError: a weight is not positive and finite, or `combine` is unknown.
    """

    def __init__(self, weights: Sequence[float], combine: Combine) -> None:
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise ConfigError(f"the weights of teachers must be above 0 and finite, not {list(weights)}")
        if combine not in get_args(Combine):
            raise ConfigError(f"teachers cannot be combined by {combine!r}; {nearest(combine, get_args(Combine))}")
        self.weights = tuple(weight / math.fsum(weights) for weight in weights)
        self.combine: Combine = combine

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """The logits (B, C), float32, of M logits (B, C).

        Raises:
            ModelError: the numbers of classes differ.
        """
        if len({each.shape for each in logits}) > 1:
            raise ModelError(
                f"the teachers give logits of shapes {', '.join(str(tuple(each.shape)) for each in logits)}; map their"
                " classes to those of the data with teacher.classes"
            )
        log_p_MBC = torch.stack([each.float().log_softmax(-1) for each in logits])
        weights_M11 = log_p_MBC.new_tensor(self.weights).view(-1, *[1] * (log_p_MBC.dim() - 1))
        if self.combine == "logits":
            return (weights_M11 * log_p_MBC).sum(0)
        return (weights_M11.log() + log_p_MBC).logsumexp(0)


class Ensemble(nn.Module):
    """Several frozen teachers as one. It is used as a `Teacher` is, and gives logits only.

    Each member keeps its own model, resolution, normalisation, precision and label map. Use a member alone for methods
    that read features.

    Args:
        members: two or more teachers of the same classes, for batches of the same normalisation.
        weights: weight of each member; None: all equal.
        combine: what is averaged (`Average`).

    Raises:
        ConfigError: as for `Average`, or there are fewer weights than members.
        ModelError: a member has other classes, or expects images of another normalisation.

    Example:
        >>> import timm, disk_kd
        >>> from disk_kd.teacher import Ensemble, Teacher
        >>> student, *teachers = (timm.create_model(f"cifar_resnet10_{n}", num_classes=10) for n in ("xxs", "s", "m"))
        >>> ensemble = Ensemble([Teacher.of(teacher, student) for teacher in teachers])
        >>> task = disk_kd.KDTask(student, ensemble)
    """

    needs = LOGITS

    def __init__(
        self, members: Sequence[Teacher], weights: Sequence[float] | None = None, combine: Combine = "logits"
    ) -> None:
        super().__init__()
        weights = [1.0] * len(members) if weights is None else weights
        if len(members) < 2 or len(weights) != len(members):
            raise ConfigError(f"an ensemble has two teachers or more, and a weight for each, not {len(members)}")
        if len({(member.input_mean, member.input_std) for member in members}) > 1:
            raise ModelError("the teachers expect batches of different normalisations; make them for one student")
        counts = {count for member in members if (count := member.num_classes) is not None}
        if len(counts) > 1:
            raise ModelError(
                f"the teachers have {' and '.join(map(str, sorted(counts)))} classes; map their classes to those of the"
                " data with teacher.classes"
            )
        self._members = nn.ModuleList(members)
        self.average = Average(weights, combine)
        self.requires_grad_(False).eval()

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers, each of which has a store of its own."""
        return tuple(member for member in self._members if isinstance(member, Teacher))

    @property
    def num_classes(self) -> int | None:
        """C; None if no member says."""
        return next((member.num_classes for member in self.members if member.num_classes is not None), None)

    @property
    def input_mean(self) -> tuple[float, ...]:
        """Mean of each channel in the normalisation of the batches."""
        return self.members[0].input_mean

    @property
    def input_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel in the normalisation of the batches."""
        return self.members[0].input_std

    @property
    def model(self) -> nn.Module:
        """An ensemble has no single model, of which features could be read.

        Raises:
            ModelError: always.
        """
        self._refuse()

    given = model

    def sizes(self, in_chans: int | None = None, image_size: int | None = None) -> dict[str, int]:
        """Sizes of features, which an ensemble has none of.

        Raises:
            ModelError: always.
        """
        self._refuse()

    def asked(self, student: nn.Module, needs: Collection[str]) -> Ensemble:
        """The ensemble for the outputs `needs` of a task with this student.

        Raises:
            ModelError: `needs` names an output other than logits, or the student has other classes.
        """
        if not frozenset(needs) <= LOGITS:
            self._refuse(sorted(frozenset(needs) - LOGITS)[0])
        members = [member.asked(student, LOGITS) for member in self.members]
        return Ensemble(members, self.average.weights, self.average.combine)

    def train(self, mode: bool = True) -> Ensemble:
        """Stays in eval mode."""
        return super().train(False)

    def joined(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The outputs of the ensemble for the outputs of its members."""
        return {"logits": self.average([each["logits"] for each in outputs])}

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """The logits of the ensemble for a batch, float32.

        Args:
            images_BCHW: (B, C, H, W), normalised with `input_mean` and `input_std`.
        """
        return self.joined([member(images_BCHW) for member in self.members])

    def _refuse(self, what: str = "features") -> NoReturn:
        raise ModelError(
            f"several teachers give logits only, not {what}; give one teacher to a method or hint that reads features"
        )


AnyTeacher = Teacher | Ensemble
"""What gives a teacher's outputs for images: `forward`, `needs`, `members`, `asked` and `joined` are the same."""


def frozen_teacher(teacher: nn.Module, student: nn.Module, needs: Collection[str]) -> AnyTeacher:
    """The teacher of a task: a model is frozen, a teacher is asked for other outputs.

    Args:
        teacher: a plain model, a `Teacher` or an `Ensemble`.
        student: the task's student.
        needs: the outputs that the task reads.

    Raises:
        ConfigError, ModelError: as for `Teacher.of` and `Ensemble.asked`.
    """
    asked: Any = getattr(teacher, "asked", None)
    return Teacher.of(teacher, student, needs) if asked is None else asked(student, needs)
