"""SDD: the student learns the teacher's logits of the image and of its regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from disk_kd.errors import ConfigError, ModelError
from disk_kd.hints.base import Context, Hint, non_negative, one
from disk_kd.losses.sdd import sdd_loss
from disk_kd.support import check_temperature
from disk_kd.teacher.features import pools_by_average


class SDDHint(Hint):
    """Scaled decoupled distillation: the student learns the teacher's logits of the image and of its regions.

    Source: Wei et al., "Scaled Decoupled Distillation", CVPR 2024. `disk_kd.losses.sdd` has the formula.

    A region is a cell of a grid over the last map; its average goes through the model's own classifier. With method
    ce and its ce_weight 0.1 it is the paper's SD-KD. The teacher's outputs are stored as logits of regions, not as
    maps. No label is read.

    Args:
        context: student and teacher.
        weight: Weight of the loss, which is summed over the regions.
        warmup_epochs: Number of student epochs over which the weight rises from 0.
        scales: Grid sizes of the regions: a scale n divides the image into n x n regions. The first is 1, the whole
            image.
        beta: Weight of the regions for which the teacher predicts another class than for the whole image.
        temperature: Temperature of student and teacher.

    Raises:
        ConfigError: a weight or warm-up is negative, a temperature is not positive, or the scales are not valid.
        ModelError: the last output of a model is not a map or is too small for the scales, or the head does not average
            it.
    """

    def __init__(
        self,
        context: Context,
        *,
        weight: float = 0.9,
        warmup_epochs: float = 30.0,
        scales: tuple[int, ...] = (1, 2),
        beta: float = 2.0,
        temperature: float = 4.0,
    ) -> None:
        if list(scales[:1]) != [1] or sorted(set(scales)) != list(scales):
            raise ConfigError(f"hint.scales must begin with 1 and rise, such as [1, 2, 4], not {list(scales)}")
        name = "regions" + "-".join(map(str, scales))
        super().__init__(weight, [name], [name], warmup_epochs)
        self.beta = non_negative("beta", beta)
        check_temperature(temperature, "hint.temperature", usual=4.0)
        self.temperature = temperature
        shapes = context.shapes(["last"], ["last"], maps=True)
        for part, (shape,) in zip(("student", "teacher"), shapes, strict=True):
            _check_map(part, getattr(context, part), shape, scales[-1])

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        regions = one(student, self.student), one(teacher, self.teacher)
        return sdd_loss(*regions, beta=self.beta, temperature=self.temperature)


def _check_map(part: str, model: Any, shape: tuple[int, ...], scale: int) -> None:
    name = type(model).__name__
    if min(shape[1:]) < scale:
        raise ModelError(
            f"the {part}'s last map, {shape[1]}x{shape[2]} of {name}, has no {scale}x{scale} regions; give larger"
            " images (data.image_size, teacher.image_size), or hint.scales without it"
        )
    if not pools_by_average(model, shape):
        raise ModelError(
            f"the head of the {part} {name} must average the last map before it classifies, so that a region is"
            " classified as an image is; use a model such as a ResNet"
        )
