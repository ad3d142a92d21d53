"""Contrastive representation distillation: the student's view of an image finds the teacher's among many."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.hints.base import Context, Hint, one
from disk_kd.losses.crd import ContrastiveLoss
from disk_kd.support import UNLABELLED


class CRDHint(Hint):
    """Contrastive representation distillation: student and teacher embeddings of the same image find each other.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020. `disk_kd.losses.crd` has the formula.
    Its memory banks hold two vectors for each training sample. They are saved with the run. A sample without a label is
    a class of its own: all other samples may be its negatives, and it may be theirs.

    Args:
        context: student, teacher and the labels of the training samples.
        weight: Weight of the loss.
        dimensions: Number of dimensions of the embeddings.
        negatives: Number of negative samples for each image.
        temperature: Temperature of the contrastive loss.
        momentum: Momentum of the memory banks.
        seed: Random seed of the negatives.
        student_layer: Name of the student's output. It is flattened.
        teacher_layer: Name of the teacher's output. It is flattened.

    Raises:
        ConfigError: the labels of the training samples are not known.
        ModelError: a model has no such output.
    """

    needs_ids = True
    classes: Tensor

    def __init__(
        self,
        context: Context,
        *,
        weight: float = 0.8,
        dimensions: int = 128,
        negatives: int = 16_384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
        student_layer: str = "pooled",
        teacher_layer: str = "pooled",
    ) -> None:
        super().__init__(weight, [student_layer], [teacher_layer])
        if context.targets is None:
            raise ConfigError("crd needs the labels of all training samples; give them in the hint's context")
        (student,), (teacher,) = context.shapes(self.student, self.teacher)
        self.register_buffer("classes", _with_own_classes(context.targets), persistent=False)
        self.contrast = ContrastiveLoss(
            math.prod(student),
            math.prod(teacher),
            self.classes,
            dimensions=dimensions,
            negatives=negatives,
            temperature=temperature,
            momentum=momentum,
            seed=seed,
        )

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        assert ids is not None
        features = (one(student, self.student).flatten(1), one(teacher, self.teacher).flatten(1))
        return self.contrast(*features, self.classes[ids], ids)


def _with_own_classes(labels_N: Tensor) -> Tensor:
    """The labels, with a class of its own for each sample without one."""
    classes_N, without_N = labels_N.clone(), labels_N == UNLABELLED
    first = int(labels_N.max().clamp(min=-1)) + 1
    classes_N[without_N] = first + torch.arange(int(without_N.sum()), device=labels_N.device)
    return classes_N
