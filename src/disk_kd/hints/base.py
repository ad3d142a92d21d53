"""What every feature method shares: which outputs it reads, and a loss of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ConfigError, ModelError
from disk_kd.teacher import feature_shapes, forward_with_features


@dataclass(frozen=True)
class Context:
    """What a hint is built for.

    Attributes:
        student, teacher: the plain models.
        in_chans: channels of the images.
        image_size: height and width of the student's images.
        teacher_image_size: height and width of the teacher's images.
        targets: int64 (N,) labels of the training samples by id, -100 for samples without a label and -1 for ids
            without a sample; None: the labels are not known.
    """

    student: nn.Module
    teacher: nn.Module
    in_chans: int
    image_size: int
    teacher_image_size: int
    targets: Tensor | None = None

    def shapes(
        self, student: Collection[str], teacher: Collection[str], maps: bool = False
    ) -> tuple[list[Any], list[Any]]:
        """Shapes, without the batch, of outputs of student and teacher.

        Args:
            student, teacher: their names.
            maps: whether all must be maps (C, H, W).

        Raises:
            ModelError: a model has no such output, or it is no map.
        """
        return (
            _shapes("student", self.student, student, self.in_chans, self.image_size, maps),
            _shapes("teacher", self.teacher, teacher, self.in_chans, self.teacher_image_size, maps),
        )


def _shapes(
    part: str, model: nn.Module, names: Collection[str], in_chans: int, image_size: int, maps: bool
) -> list[tuple[int, ...]]:
    """The shapes of one model's outputs; `part` is what the model is, for messages."""
    try:
        shapes = feature_shapes(model, names, in_chans, image_size)
    except ModelError as error:
        raise ModelError(f"the {part}'s layers: {error}") from None
    for name, shape in shapes.items():
        if maps and len(shape) != 3:
            raise ModelError(
                f"the {part}'s layers: {name} of {type(unwrap_model(model)).__name__} must be a map (channels, height,"
                f" width), it is {shape}; name another output"
            )
    return [shapes[name] for name in names]


def all_stages(
    context: Context, student: Sequence[str] | None, teacher: Sequence[str] | None, pooled: bool = False
) -> tuple[list[str], list[str]]:
    """Names of outputs to pair; where none are given, all stages, the last ones where one model has fewer.

    Args:
        context: student and teacher.
        student, teacher: names that were given.
        pooled: whether the pooled features come after the stages.

    Raises:
        ConfigError: not as many outputs of the one as of the other.
        ModelError: a model does not tell its stages.
    """
    ours, theirs = list(student or ()), list(teacher or ())
    if not (ours and theirs):
        counts = _stages("student", context.student), _stages("teacher", context.teacher)
        last = [[f"stage{stage}" for stage in range(count - min(counts), count)] for count in counts]
        ours, theirs = (
            names or stages + ["pooled"] * pooled for names, stages in zip((ours, theirs), last, strict=True)
        )
    if len(ours) != len(theirs):
        raise ConfigError(
            f"hint.student_layers and hint.teacher_layers must be as many, got {ours} and {theirs}; name one for each"
        )
    return ours, theirs


def _stages(part: str, model: nn.Module) -> int:
    try:
        return len(unwrap_model(model).feature_info)
    except (AttributeError, TypeError):
        raise ModelError(
            f"the {part} {type(unwrap_model(model)).__name__} does not tell its stages; name the modules to read with"
            " hint.student_layers and hint.teacher_layers"
        ) from None


def non_negative(name: str, value: float) -> float:
    """`value`, a finite number not below zero.

    Raises:
        ConfigError: it is another.
    """
    if not 0 <= value < math.inf:
        raise ConfigError(f"hint.{name} must be a number not below 0, not {value}")
    return value


def one(outputs: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """The only output that a hint reads."""
    return outputs[names[0]]


class Hint(nn.Module):
    """A loss on features of student and teacher. It is added, with a weight, to the loss of any method.

    Its parameters, such as regressors and embeddings, train with the student. They are dropped after training.

    Args:
        weight: Weight of the loss.
        warmup_epochs: Number of student epochs over which the weight rises from 0.
        student: names of the student's outputs that the hint reads (`disk_kd.teacher.features`).
        teacher: names of the teacher's outputs that the hint reads.

    Attributes:
        needs_ids: whether `forward` reads the sample ids.
        least_batch: minimum batch size.

    Raises:
        ConfigError: a weight or warm-up is negative.
    """

    needs_ids = False
    least_batch = 1

    def __init__(
        self, weight: float, student: Sequence[str], teacher: Sequence[str], warmup_epochs: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = non_negative("weight", weight)
        self.warmup_epochs = non_negative("warmup_epochs", warmup_epochs)
        self.student, self.teacher = tuple(student), tuple(teacher)

    @classmethod
    def prepare(cls, student: nn.Module, teacher: nn.Module, options: Mapping[str, Any]) -> nn.Module:
        """The model to train in the place of the student; most methods leave it alone."""
        return student

    @classmethod
    def keeps_student(cls) -> bool:
        """Whether the trained model is the student itself."""
        return cls.prepare.__func__ is Hint.prepare.__func__  # type: ignore[attr-defined]

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], target: Tensor, ids: Tensor | None
    ) -> Tensor:
        """The loss of a batch, without the weight.

        Args:
            student: outputs by name, (B, ...).
            teacher: likewise, without gradients.
            target: (B,) class indices; -100 for an image without a label.
            ids: (B,) sample ids; None unless `needs_ids`.
        """
        raise NotImplementedError


class StudentWrapper(nn.Module):
    """A student and what trains beside it. timm's optimisers treat it as they treat the student.

    A method that trains modules beside the student derives its wrapper from it: tasks then find the plain student in
    any wrapper.

    Attributes:
        student: a plain model, or another wrapper.
    """

    student: nn.Module

    def no_weight_decay(self) -> set[str]:
        """Names of the student's parameters that are to have no weight decay."""
        names: set[str] = getattr(self.student, "no_weight_decay", set)()
        return {f"student.{name}" for name in names}

    @property
    def group_matcher(self) -> Callable[..., Callable[[str], int]]:
        """What tells a parameter's layer, for layer decay; what trains beside the student belongs to the last layer.

        Raises:
            AttributeError: the student does not tell its layers.
        """
        student: Any = self.student
        own = student.group_matcher

        def matcher(coarse: bool = False) -> Callable[[str], int]:
            layers = group_parameters(student, own(coarse=coarse), reverse=True)
            last = max(layers.values())
            return lambda name: layers.get(name.removeprefix("student."), last) if name.startswith("student.") else last

        return matcher


class StudentAndHint(StudentWrapper):
    """Student and hint in one forward pass, for data-parallel wrappers."""

    def __init__(self, student: nn.Module, hint: Hint) -> None:
        super().__init__()
        self.student, self.hint = student, hint

    def forward(
        self, input: Tensor, target: Tensor, teacher: Mapping[str, Tensor], names: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """`logits` (B, C), `hint_loss` with the weight, and the student's further outputs `names`."""
        outputs = forward_with_features(self.student, input, ("logits", *self.hint.student, *names))
        loss = self.hint.weight * self.hint(outputs, teacher, target, teacher.get("ids"))
        return {"hint_loss": loss, **{name: outputs[name] for name in ("logits", *names)}}
