"""timm's own distillation tasks, in this project's loop and with its teacher."""

from __future__ import annotations

from typing import Any, Literal

from timm.task import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask
from timm.task.distillation import DistillationTeacher
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ConfigError, ModelError, one_line
from disk_kd.hints import Hint
from disk_kd.support import LOWEST
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.phase import Phase
from disk_kd.teacher.features import check_features, normalisation


class _Outputs(DistillationTeacher):
    """In the place of timm's teacher: gives what the project's teacher gave for the batch, or what was stored of it.

    Its own would compare two normalisations on the device at each step, and knows no image size and no precision.
    """

    def __init__(self, model: nn.Module, need: str) -> None:
        super().__init__(model)
        self.need = need
        self.outputs: dict[str, Tensor] = {}

    def normalize_input(self, input: Tensor, student_mean: Any = None, student_std: Any = None) -> Tensor:
        return input

    def forward(self, input: Tensor, return_features: bool = False) -> Tensor:
        return self.outputs[self.need]


class _TimmTask(StudentTask):
    """Around a task of timm's: its forward pass is what runs, its trainable module is what trains.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        kind: the class of timm's task.
        need: the output of the teacher that it reads.
        settings: its keywords; temperature and weights are checked.
    """

    mixes = True
    # Of a batch without any label timm's loss is NaN.
    unlabelled = False
    weighs_labels = False
    unlabelled_use = "timm's tasks need the label of each image; use kd, or ce with a hint"

    def __init__(self, student: nn.Module, teacher: nn.Module, kind: Any, need: str, **settings: Any) -> None:
        for name, value in settings.items():
            if name == "temperature":
                positive(name, value)
            elif name.endswith("weight"):
                non_negative(name, value)
        check_features(unwrap_model(student), need)
        if normalisation(unwrap_model(student)) is None:
            raise ModelError(
                f"{type(unwrap_model(student)).__name__} does not say how its images are normalised, which timm's tasks"
                " read; tell it by disk_kd.models.set_normalisation(model, mean, std), or take kd"
            )
        super().__init__(student, teacher, needs=frozenset({need}), phases=(Phase("student", "trainable_module"),))
        assert self.teacher is not None
        read = self.teacher if need == "logits" else self.teacher.model  # logits may come from several models
        try:
            inner = kind(student, _Outputs(read, need), device=self.device, verbose=False, **settings)
        except (AttributeError, TypeError, ValueError) as error:
            raise _unfit(student, error) from error
        self.trainable_module = inner.trainable_module
        # Not registered: the teacher would enter the checkpoints, and the student twice.
        self._inner = (inner,)

    @property
    def student(self) -> nn.Module:
        """The plain model: nothing of the method is needed to use or export it."""
        module = unwrap_model(self.trainable_module)
        return getattr(module, "student", module)

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student, or its running average: what is validated and saved."""
        model = super().get_eval_model(module, ema)
        return getattr(unwrap_model(model), "student", model)

    def add_hint(self, hint: Hint, teacher: nn.Module | None = None) -> None:
        """Refused: timm's tasks run their student themselves.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a task of timm's takes no hint; add it to kd, ce or another method")

    def compile(self, backend: str = "inductor", mode: str | None = None, **options: Any) -> nn.Module:  # type: ignore[override]
        """As of every task; timm's then runs what was compiled."""
        module = super().compile(backend, mode, **options)
        self._inner[0].trainable_module = module
        return module

    def _wrap(self, options: dict[str, Any]) -> None:
        super()._wrap(options)
        self._inner[0].trainable_module = self.trainable_module

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices.
            teacher: stored outputs; the teacher runs when there are none.

        Returns:
            `loss`, `output` (the student's logits), and for the log `task_loss` and what timm calls the other part,
            `kd_loss` or `distill_loss`.
        """
        (inner,) = self._inner
        need = inner.teacher.need
        inner.teacher.outputs = {need: self.teacher_outputs(input, teacher)[need].clamp(min=LOWEST)}
        try:
            result = inner(input, target)
        except (AttributeError, TypeError) as error:
            raise _unfit(self.student, error) from error
        inner.teacher.outputs = {}
        parts = {name: value for name, value in result.items() if name not in ("loss", "output")}
        return self.result(result["loss"], result["output"], None, **parts)


def _unfit(student: nn.Module, error: Exception) -> ModelError:
    """The error for a model that is not enough of timm's kind."""
    name = type(unwrap_model(student)).__name__
    return ModelError(f"timm's task cannot train {name} ({one_line(error)}); take kd or another method")


class TimmLogitTask(_TimmTask):
    """timm.task.LogitDistillationTask: KD with one temperature.

    loss = task_loss_weight cross_entropy(s, y) + distill_loss_weight T² KL(softmax(t / T) || softmax(s / T))

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        temperature: Temperature T.
        task_loss_weight: Weight of the cross-entropy.
        distill_loss_weight: Weight of the divergence.

    Raises:
        ConfigError: the temperature is not positive, or a weight is negative.
        ModelError: teacher and student differ in their number of classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        task_loss_weight: float = 0.1,
        distill_loss_weight: float = 0.9,
    ) -> None:
        super().__init__(
            student,
            teacher,
            LogitDistillationTask,
            "logits",
            temperature=temperature,
            task_loss_weight=task_loss_weight,
            distill_loss_weight=distill_loss_weight,
        )


class TimmFeatureTask(_TimmTask):
    """timm.task.FeatureDistillationTask: projected pooled features of the student imitate the teacher's.

    loss = task_loss_weight cross_entropy(s, y) + distill_loss_weight mean_squared_error(projection(f_s), f_t)

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        task_loss_weight: Weight of the cross-entropy.
        distill_loss_weight: Weight of the feature loss.

    Raises:
        ConfigError: a weight is negative.
        ModelError: teacher and student differ in their number of classes, or one has no pooled features.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task_loss_weight: float = 1.0,
        distill_loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            FeatureDistillationTask,
            "pooled",
            task_loss_weight=task_loss_weight,
            distill_loss_weight=distill_loss_weight,
        )


class TimmTokenTask(_TimmTask):
    """timm.task.TokenDistillationTask: DeiT's distillation token learns from the teacher, its class token from labels.

    loss = task_loss_weight cross_entropy(s_class, y) + distill_loss_weight d(s_token, t), where d is
    cross_entropy(s_token, argmax t) (hard, the paper's choice) or T² KL(softmax(t / T) || softmax(s_token / T)) (soft)

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021.

    Args:
        student: a model with a distillation token, such as deit_tiny_distilled_patch16_224.
        teacher: a trained model of the same classes; it is frozen.
        distill_type: Kind of distillation: "hard" or "soft".
        temperature: Temperature T of soft distillation.
        task_loss_weight: Weight of the class token's loss.
        distill_loss_weight: Weight of the distillation token's loss.

    Raises:
        ConfigError: the temperature is not positive, or a weight is negative.
        ModelError: the student has no distillation token, or teacher and student differ in their number of classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        distill_type: Literal["hard", "soft"] = "hard",
        temperature: float = 1.0,
        task_loss_weight: float = 0.5,
        distill_loss_weight: float = 0.5,
    ) -> None:
        if not hasattr(unwrap_model(student), "set_distilled_training"):
            raise ModelError(
                f"{type(student).__name__} has no distillation token; take deit_tiny_distilled_patch16_224 or the like"
            )
        super().__init__(
            student,
            teacher,
            TokenDistillationTask,
            "logits",
            distill_type=distill_type,
            temperature=temperature,
            task_loss_weight=task_loss_weight,
            distill_loss_weight=distill_loss_weight,
        )
