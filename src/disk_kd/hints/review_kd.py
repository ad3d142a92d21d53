"""ReviewKD: each stage of the teacher is learned from the student's stages up to it, reviewed from deep to shallow."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from disk_kd.errors import ModelError
from disk_kd.hints.base import Context, Hint, all_stages
from disk_kd.losses.review_kd import ReviewKD


class ReviewKDHint(Hint):
    """Knowledge review: each teacher stage is learned from the student's stages up to it, from deep to shallow.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.
    `disk_kd.losses.review_kd` has the formula.

    Args:
        context: student and teacher.
        weight: Weight of the loss.
        warmup_epochs: Number of student epochs over which the weight rises from 0.
        student_layers: Names of the student's outputs, maps or pooled features, from shallow to deep. null takes all
            stages and the pooled features.
        teacher_layers: Names of the teacher's outputs, one for each of the student's. null takes all stages and the
            pooled features.

    Raises:
        ConfigError: student and teacher have different numbers of outputs.
        ModelError: a model has no such output, or the output is neither a map nor pooled features.
    """

    def __init__(
        self,
        context: Context,
        *,
        weight: float = 1.0,
        warmup_epochs: float = 20.0,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
    ) -> None:
        layers = all_stages(context, student_layers, teacher_layers, pooled=True)
        super().__init__(weight, *layers, warmup_epochs=warmup_epochs)
        student, teacher = context.shapes(self.student, self.teacher)
        self.review = ReviewKD([_as_map(shape) for shape in student], [_as_map(shape) for shape in teacher])

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        ours = [_with_size(student[name]) for name in self.student]
        return self.review(ours, [_with_size(teacher[name]) for name in self.teacher])


def _as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (1, 3):
        raise ModelError(f"ReviewKD reads maps (channels, height, width) and pooled features, not {shape}; name others")
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    return channels, height, width


def _with_size(features: Tensor) -> Tensor:
    """Pooled features as maps of one pixel."""
    return features[:, :, None, None] if features.ndim == 2 else features
