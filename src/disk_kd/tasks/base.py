"""The base class of all tasks: what they share beyond timm's protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from disk_kd.errors import ConfigError, ModelError
from disk_kd.hints import Hint, StudentAndHint, StudentWrapper
from disk_kd.logits import class_count, logits_of
from disk_kd.losses.class_weights import class_weights, logit_shift
from disk_kd.losses.standardise import standardise
from disk_kd.support import check_targets, label_loss, require_range
from disk_kd.tasks.phase import Phase
from disk_kd.tasks.quantity import Quantity
from disk_kd.tasks.snapshot import snapshot
from disk_kd.teacher import AnyTeacher, frozen_teacher


class StudentTask(TrainingTask):
    """A `timm.task.TrainingTask` around one student, with or without a frozen teacher.

    A method derives from it and writes `forward`: `task(input, target, teacher=None) -> {"loss", "output",
    parts}`. Parts are detached 0-dim tensors for the log. `quantities` declares how people read them.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen. None: the method has no teacher.
        needs: teacher outputs that `forward` reads, such as "logits" (`disk_kd.teacher.features` has the names).
        phases: kinds of epochs, in the order of one round.

    Raises:
        ConfigError: a phase leaves the student fixed, and `fixed_student_phases` does not name it.
        ModelError: teacher and student are one model, share weights, or differ in their number of classes.
    """

    fixed_student_phases: ClassVar[frozenset[str]] = frozenset()
    """Names of the phases whose epochs leave the student fixed (`Phase.trains_student` is false). Their lines of the
    log are no part of the summary and of the report's curves."""

    trainable_module: nn.Module
    teacher: AnyTeacher | None
    step: Tensor
    """Number of calls that trained the student so far. Schedules and warm-ups follow it."""
    steps_per_epoch = 1
    """Number of calls in an epoch, which turns steps into epochs for schedules. `set_clock` sets it."""
    top_logits = 0
    """How many of the teacher's largest logits the method needs. Stored outputs that keep fewer are refused."""
    mixes: bool = False
    """Whether targets may be class probabilities (B, C), as mixup and cutmix make them."""
    unlabelled: bool = True
    """Whether images may come without a label, -100."""
    unlabelled_use: ClassVar[str] = "the teacher's part counts all images, the cross-entropy the labelled ones"
    """What the method does with images without a label, or why it refuses them and what to use instead."""
    weighs_labels: ClassVar[bool] = True
    """Whether the method's loss of the labels is `label_loss`, which weighs classes (`balance_labels`)."""
    needs_unlabelled: ClassVar[bool] = False
    """Whether the method is nothing but cross-entropy on the labels if all images have labels."""
    labelled_share: Tensor | None
    """Share of labelled images in the batch of all processes; None: all images of a call are one batch."""
    class_weights_C: Tensor | None
    """Weight of each class in the labels' cross-entropy; None: all are 1."""
    logit_shift_C: Tensor | None
    """What is added to the logits in the labels' cross-entropy; None: nothing."""
    teacher_classes: ClassVar[bool] = True
    """Whether the teacher must classify the classes of the data. Otherwise a backbone without a classifier will do."""
    standardise = False
    """Whether `prepare_logits` standardises logits."""
    _parallel: dict[str, Any] | None = None
    """Options of the data-parallel wrapper; None: there is no wrapper."""
    _compiled: dict[str, Any] | None = None
    """Options of the compiler; None: the student is not compiled."""
    _labels_seen = False
    """Whether labels on an accelerator were checked, which happens once."""
    micro_batches = 1
    """Number of calls in one step of the optimiser, with gradient accumulation. `set_clock` sets it."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        needs: frozenset[str] = frozenset(),
        phases: tuple[Phase, ...] = (Phase("student"),),
    ) -> None:
        if teacher is student:
            raise ModelError("student and teacher are one model, which would be frozen; give a teacher of its own")
        if teacher is not None:
            _check_apart(teacher, student)
        if undeclared := {phase.name for phase in phases if not phase.trains_student} - self.fixed_student_phases:
            raise ConfigError(
                f"the phase {min(undeclared)} leaves the student fixed; add its name to fixed_student_phases of"
                f" {type(self).__name__}"
            )
        super().__init__(device=next(student.parameters()).device, verbose=False)
        self.needs = needs
        self.phases = phases
        self.phase: str | None = None
        self.trainable_module = student
        self.teacher = None if teacher is None else frozen_teacher(teacher, student, needs)
        if not student.training:  # a model after an evaluation; in one that trains, frozen parts stay frozen
            student.train()
        for name in ("labelled_share", "class_weights_C", "logit_shift_C"):
            self.register_buffer(name, None, persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=self.device))

    @classmethod
    def with_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options of the constructor, with None replaced by the value that the method takes for it.

        A run's config.yaml holds them. It repeats the run even if a later version has other defaults.
        """
        return options

    @classmethod
    def quantities(cls, options: Mapping[str, Any]) -> tuple[Quantity, ...]:
        """The numbers that `forward` returns for the log beside losses, and how people read them.

        Args:
            options: of the constructor, by name.
        """
        return ()

    @property
    def student(self) -> nn.Module:
        """The plain model, which needs nothing of the method to be used or exported."""
        return plain(self.trainable_module)

    @property
    def learner(self) -> nn.Module:
        """The student with its hint: what student epochs train."""
        module = unwrap_model(self.trainable_module)
        while isinstance(module, StudentWrapper) and not isinstance(module, StudentAndHint):
            module = module.student
        return module

    @property
    def hint(self) -> Hint | None:
        """The feature method that is added to this one, if there is one."""
        return self.learner.hint if isinstance(self.learner, StudentAndHint) else None

    @property
    def classifies(self) -> bool:
        """Whether training reaches the student's classifier. Otherwise its accuracy is not measured."""
        return True

    @property
    def least_batch(self) -> int:
        """Minimum batch size."""
        return 1 if self.hint is None else self.hint.least_batch

    @property
    def needs_ids(self) -> bool:
        """Whether `teacher` must hold the samples' "ids" too."""
        return self.hint is not None and self.hint.needs_ids

    def set_clock(self, steps_per_epoch: int, micro_batches: int = 1) -> None:
        """Say how many calls an epoch has, for schedules and warm-ups, which are set in epochs.

        Args:
            steps_per_epoch: steps of the optimiser in an epoch over the data.
            micro_batches: calls in one step of the optimiser, where a loop accumulates gradients.
        """
        self.steps_per_epoch = steps_per_epoch * micro_batches
        self.micro_batches = micro_batches

    def add_hint(self, hint: Hint, teacher: nn.Module | None = None) -> None:
        """Add the weighted loss of a feature method to this method's own, and train its parameters too.

        Args:
            hint: built for this student and teacher.
            teacher: where this method has none of its own.

        Raises:
            ConfigError: there is a hint already, or no teacher.
            ModelError: the teacher has no such output.
        """
        if self.hint is not None:
            raise ConfigError(f"the task has the hint {type(self.hint).__name__} already; add one")
        teacher = self.teacher if teacher is None else teacher
        if teacher is None:
            raise ConfigError(f"the hint {type(hint).__name__} needs a teacher; give one")
        self.needs |= frozenset(hint.teacher)
        self.teacher = frozen_teacher(teacher, self.student, self.needs)
        self.phases = tuple(
            replace(phase, module="learner") if phase.module == "student" else phase for phase in self.phases
        )
        self._replace_student(StudentAndHint(self.student, hint.to(self.device)))

    def _replace_student(self, learner: nn.Module) -> None:
        """Put `learner` where the plain student is: in the innermost wrapper, or in no wrapper."""
        wrapper = self.trainable_module
        if not isinstance(wrapper, StudentWrapper):
            self.trainable_module = learner
            return
        while isinstance(wrapper.student, StudentWrapper):
            wrapper = wrapper.student
        wrapper.student = learner

    def __call__(self, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with class indices of any integer type.

        Labels on the CPU are checked at each call, labels on an accelerator at the first call only, because the check
        waits for the device.

        Raises:
            DataError: labels outside the classes, or not one for each image.
        """
        if isinstance(target, Tensor):
            target = target if target.is_floating_point() else target.long()
            if not torch.compiler.is_compiling():
                self._check_labels(target, len(input))
        return super().__call__(input, target, *args, **kwargs)

    def expect_unlabelled(self) -> None:
        """Prepare for batches in which images have no label.

        A batch may then be divided among processes and micro-batches (`set_labelled_share`).

        Raises:
            ConfigError: the method needs labels, or learns nothing from an image without one.
        """
        if not self.unlabelled or (self.teacher is None and self.hint is None):
            raise ConfigError(f"the method does not learn from images without labels: {self.unlabelled_use}")
        self.labelled_share = torch.ones((), device=self.device)

    def count_confident(self, confidence: float) -> None:
        """Leave unlabelled images out of the teacher's part for which the teacher's first class is improbable.

        Args:
            confidence: least probability of the teacher's first class; 0 counts all images.

        Raises:
            ConfigError: the method has no such option.
        """
        if confidence:
            raise ConfigError(
                "data.unlabelled_confidence is for methods that compare logits, such as kd and dist, and for"
                f" self-training, not for {type(self).__name__}; leave it out"
            )

    def balance_labels(
        self,
        counts_C: Tensor,
        *,
        weights: Literal["none", "inverse", "effective"] = "none",
        beta: float = 0.999,
        logit_adjustment: float = 0.0,
    ) -> None:
        """Weigh the classes in the labels' cross-entropy, or shift the logits there, for unequal classes.

        The student's output keeps its own logits. The shift is for training alone.

        Args:
            counts_C: (C,), number of labelled images of each class.
            weights: kind of the weights of the classes (`disk_kd.losses.class_weights`).
            beta: of the kind "effective".
            logit_adjustment: tau of `disk_kd.losses.logit_shift`; 0: no shift.

        Raises:
            ConfigError: the method computes the loss of the labels by itself, or there are no labelled images.
        """
        if not self.weighs_labels:
            raise ConfigError(
                f"{type(self).__name__} does not weigh classes, because timm computes its loss of the labels; give"
                " train.class_weights=none and train.logit_adjustment=0, or use kd"
            )
        weights_C = None if weights == "none" else class_weights(counts_C, weights, beta)
        shift_C = logit_shift(counts_C, logit_adjustment) if logit_adjustment else None
        self.class_weights_C = None if weights_C is None else weights_C.float().to(self.device)
        self.logit_shift_C = None if shift_C is None else shift_C.float().to(self.device)

    def set_labelled_share(self, share: float) -> None:
        """Say which share of the images of the whole batch has labels, before the calls on its parts."""
        if self.labelled_share is not None:
            self.labelled_share.fill_(share)

    def label_loss(self, logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
        """Mean cross-entropy of the labelled images of the batch; 0 if there are none.

        mean_i w_(y_i) cross_entropy(s_i + shift, y_i), with the weights and the shift of `balance_labels`

        Args:
            logits: (B, C).
            target: (B,) class indices, -100 for an image without a label; or (B, C) label probabilities.
            label_smoothing: in [0, 1).
        """
        if self.logit_shift_C is not None:
            logits = logits.float() + self.logit_shift_C
        return label_loss(logits, target, label_smoothing, self.labelled_share, self.class_weights_C)

    def _check_labels(self, target: Tensor, images: int) -> None:
        classes = class_count(self.student)
        check_targets(target, images, classes)
        seen = target.device.type != "cpu" and self._labels_seen
        if classes is not None and not target.is_floating_point() and not seen:
            require_range(target, classes, unlabelled=self.unlabelled)
            self._labels_seen = True

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student, or its running average: what is validated and saved."""
        model = super().get_eval_model(module, ema)
        return model if model is None else plain(model)

    @property
    def _student_moves(self) -> bool:
        return any(phase.trains_student for phase in self.phases if self.phase in (None, phase.name))

    def set_phase(self, name: str | None) -> None:
        """Select what the next epochs train, and put only that part into train mode.

        Args:
            name: the name of a phase; None: all parts train at once, as in a plain loop.
        """
        self.phase = name
        if self._parallel is not None:
            self._wrap(self._parallel)
        self.train(self.training)

    def prepare_distributed(self, device_ids: list[int] | None = None, **options: Any) -> StudentTask:
        """Wrap what is trained in `DistributedDataParallel`, as timm's tasks do.

        Each phase has its own wrapper, because parts that do not train take no part in its reductions.

        Args:
            device_ids: [the device's number], or None on a CPU.
            options: further ones of the wrapper.
        """
        self._parallel = {"device_ids": device_ids, **options}
        self._wrap(self._parallel)
        return self

    def _wrap(self, options: dict[str, Any]) -> None:
        module = unwrap_model(self.trainable_module)
        parts = [getattr(self, phase.module) for phase in self.phases if self.phase in (None, phase.name)]
        moving = {parameter for part in parts for parameter in part.parameters()}
        held = [p for p in module.parameters() if p.requires_grad and p not in moving]
        for parameter in held:
            parameter.requires_grad_(False)
        self.trainable_module = DistributedDataParallel(module, **options)
        for parameter in held:
            parameter.requires_grad_(True)
        if self._compiled is not None:
            self.compile(**self._compiled)

    def train(self, mode: bool = True) -> StudentTask:
        """Set train mode for the parts that the phase trains, and eval mode for the others."""
        super().train(mode)
        trained = {phase.module for phase in self.phases if self.phase in (None, phase.name)}
        for module in {phase.module for phase in self.phases} - trained:
            getattr(self, module).eval()
        return self

    def begin(self, batches: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> None:
        """Read training data before training begins. By default it does nothing.

        Args:
            batches: training images, labels (B,) and stored outputs, which may be empty. A run gives the batches of its
                first epoch.
        """

    def teacher_outputs(self, input: Tensor, stored: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The teacher's outputs for a batch. The teacher runs only if `stored` lacks some of them.

        Raises:
            ConfigError: outputs are missing, and there is no teacher to compute them.
        """
        stored = stored or {}
        if self.needs <= stored.keys():
            return stored
        if self.teacher is None:
            raise ConfigError("the task has neither a teacher nor stored outputs of one; give one of them")
        return {**self.teacher(input), **stored}

    def unusable_outputs(self, input: Tensor) -> list[str]:
        """Names of the teacher's outputs that are not finite for a batch. They make the loss not finite too."""
        outputs = {} if self.teacher is None else self.teacher(input)
        return [name for name, output in outputs.items() if not output.isfinite().all()]

    def student_outputs(
        self, input: Tensor, target: Tensor, teacher: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The student's logits (B, C), and the weighted loss of the hint; None if there is no hint."""
        if self.hint is None:
            return logits_of(self.trainable_module(input), self.student), None
        outputs = self.trainable_module(input, target, teacher)
        return outputs["logits"], self.hint_ramp() * outputs["hint_loss"]

    def hint_ramp(self) -> Tensor | float:
        """The factor of the hint's weight in its warm-up."""
        return 1.0 if self.hint is None else self.ramp(self.hint.warmup_epochs)

    def ramp(self, epochs: float) -> Tensor | float:
        """The factor of a weight in its warm-up: it rises from 0 to 1 over `epochs` student epochs, step by step."""
        return 1.0 if not epochs else ((snapshot(self.step) + 1) / (epochs * self.steps_per_epoch)).clamp(max=1)

    def prepare_logits(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of student and teacher, (B, C). With the option `standardise` each row has mean 0 and deviation 1."""
        return (standardise(student), standardise(teacher)) if self.standardise else (student, teacher)

    def result(self, loss: Tensor, logits: Tensor, hint_loss: Tensor | None, **parts: Tensor) -> dict[str, Tensor]:
        """What `forward` returns: the loss plus the hint's, the logits, and the detached parts for the log."""
        if self.training and torch.is_grad_enabled() and self._student_moves:
            self.step += 1
        if hint_loss is not None:
            loss, parts = loss + hint_loss, {**parts, "hint_loss": hint_loss}
        return {"loss": loss, "output": logits, **{name: part.detach() for name, part in parts.items()}}

    def compile(self, backend: str = "inductor", mode: str | None = None, **options: Any) -> nn.Module:  # type: ignore[override]
        """Compile the student's forward pass, as timm's tasks do; `student` stays the plain model.

        Args:
            backend, mode, options: as of `torch.compile`.
        """
        self._compiled = {"backend": backend, "mode": mode, **options}
        self.trainable_module = cast(nn.Module, torch.compile(self.trainable_module, **self._compiled))
        return self.trainable_module


def plain(module: nn.Module) -> nn.Module:
    """The student alone, without the wrappers of torch (`DistributedDataParallel`, `compile`) and of methods."""
    module = unwrap_model(module)
    return plain(module.student) if isinstance(module, StudentWrapper) else module


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a student that shares weights with its teacher, because they would be frozen in both."""
    theirs = {id(tensor) for tensor in teacher.state_dict(keep_vars=True).values()}
    shared = [name for name, tensor in student.state_dict(keep_vars=True).items() if id(tensor) in theirs]
    if shared:
        raise ModelError(
            f"teacher and student share {shared[0]}, which would be frozen in both; give a copy as the teacher,"
            " copy.deepcopy(teacher)"
        )
