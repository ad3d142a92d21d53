"""Distillation of a backbone's pooled features, without labels and without a classifier of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ModelError
from disk_kd.hints import StudentAndHint, StudentWrapper
from disk_kd.losses import feature_kd_loss
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import non_negative
from disk_kd.tasks.phase import Phase
from disk_kd.teacher import feature_shapes, forward_with_features


class StudentAndProjector(StudentWrapper):
    """Student and projector behind one forward pass, for data-parallel wrappers.

    Args:
        student: a plain model, or a `StudentAndHint`.
        projector: maps the student's pooled features to as many as the teacher has.
    """

    def __init__(self, student: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.student, self.projector = student, projector

    def forward(self, input: Tensor, target: Tensor, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`logits` (B, C), `projected` (B, F), and the hint's weighted `hint_loss` if there is a hint."""
        if isinstance(self.student, StudentAndHint):
            outputs = self.student(input, target, teacher, ("pooled",))
        else:
            outputs = forward_with_features(self.student, input, ("logits", "pooled"))
        return {**outputs, "projected": self.projector(outputs["pooled"])}


class FeatureTask(StudentTask):
    """Feature distillation: the student's projected pooled features match the teacher's. It needs no labels.

    loss = cosine_weight mean_i (1 - cos(p(s_i), t_i)) + squared_weight mean (p(s) - t / r)²
           + ce_weight cross_entropy(z, y)

    s and t are pooled features, p is the projector, r² is the mean of t², and z are the student's logits.
    `disk_kd.losses.feature_kd` has the formula and its sources. The teacher needs no classifier (`num_classes=0`), and
    any classifier that it has is not read. The projector is dropped after training. Without labels (ce_weight 0) the
    student's own classifier is not trained: `disk-kd probe RUN`, or a run that starts from the student's weights, gives
    it one.

    Args:
        student: the model to train.
        teacher: a trained model with pooled features; it is frozen.
        cosine_weight: Weight of 1 - cosine.
        squared_weight: Weight of the squared error, in units of the teacher's mean squared feature.
        ce_weight: Weight of the cross-entropy on the labels. 0 needs no labels.
        hidden: Number of hidden units of the projector. 0 makes the projector linear.

    Raises:
        ConfigError: a weight or `hidden` is negative.
        ModelError: a model has no pooled features.
    """

    mixes = True
    unlabelled_use = "the features of all images count, the cross-entropy of the labelled ones"
    teacher_classes: ClassVar[bool] = False

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        cosine_weight: float = 1.0,
        squared_weight: float = 1.0,
        ce_weight: float = 0.0,
        hidden: int = 0,
    ) -> None:
        super().__init__(student, teacher, needs=frozenset({"pooled"}), phases=(Phase("student", "trainable_module"),))
        self.cosine_weight = non_negative("cosine_weight", cosine_weight)
        self.squared_weight = non_negative("squared_weight", squared_weight)
        self.ce_weight = non_negative("ce_weight", ce_weight)
        assert self.teacher is not None
        ours, theirs = _pooled_size("student", student), _pooled_size("teacher", self.teacher.model)
        projector = _projector(ours, theirs, int(non_negative("hidden", hidden))).to(self.device)
        self.trainable_module = StudentAndProjector(student, projector)

    @property
    def classifies(self) -> bool:
        """Whether training reaches the student's classifier."""
        return self.ce_weight > 0

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices; -100 for images without a label.
            teacher: stored outputs, `pooled` (B, F); the teacher runs when there are none.

        Returns:
            `loss` (scalar), `output`, the student's logits (B, classes), and for the log `feature_loss` and `ce_loss`.
        """
        teacher = self.teacher_outputs(input, teacher)
        outputs = self.trainable_module(input, target, teacher)
        feature = feature_kd_loss(
            outputs["projected"],
            teacher["pooled"],
            cosine_weight=self.cosine_weight,
            squared_weight=self.squared_weight,
        )
        # With weight 0 too: a data-parallel wrapper waits for a gradient of every parameter.
        ce = self.label_loss(outputs["logits"], target, 0.0)
        hint = outputs.get("hint_loss")
        hint_loss = None if hint is None else self.hint_ramp() * hint
        return self.result(
            feature + self.ce_weight * ce, outputs["logits"], hint_loss, feature_loss=feature, ce_loss=ce
        )


def _pooled_size(part: str, model: nn.Module) -> int:
    """The number of a model's pooled features.

    Raises:
        ModelError: it has none.
    """
    try:
        (shape,) = feature_shapes(model, ["pooled"]).values()
    except ModelError as error:
        raise ModelError(f"the {part} has no pooled features: {error}") from None
    if len(shape) != 1:
        raise ModelError(
            f"the {part} {type(unwrap_model(model)).__name__} gives {shape} for an image, not pooled features (F,);"
            " leave out options that switch its pooling off"
        )
    return shape[0]


def _projector(ours: int, theirs: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(ours, theirs)
    return nn.Sequential(nn.Linear(ours, hidden), nn.GELU(), nn.Linear(hidden, theirs))
