"""The training examples of a run, ranked by help or by doubt about their labels.

Shape letters: B batch, N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from disk_kd.build import load_data
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Augment, Batch, Loader
from disk_kd.devices import inference_batch, place
from disk_kd.errors import ConfigError, DataError, ModelError
from disk_kd.report.outputs import Outputs
from disk_kd.report.reading import Run
from disk_kd.support import UNLABELLED
from disk_kd.tasks import ExampleHelp, HelpsExamples, default_help
from disk_kd.teacher import AnyTeacher
from disk_kd.trained import normalisation

Ranking = Literal["help", "student-loss", "teacher-loss", "teacher-doubt"]
RANKINGS: dict[Ranking, str] = {
    "help": "mean help over the views",
    "student-loss": "mean cross-entropy of the student against the label",
    "teacher-loss": "mean cross-entropy of the teacher against the label",
    "teacher-doubt": "teacher's probability of its prediction minus that of the label",
}
"""The rankings of samples, the highest value first."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """Outputs of student and teacher for the samples of a split, all (N,), means over the views.

    Attributes:
        split: the samples.
        help: of each sample, at least 0.
        student_guess, teacher_guess: predicted class, the one with the highest mean probability.
        student_label, teacher_label: mean probability of the label.
        student_best, teacher_best: mean probability of the predicted class.
        student_loss, teacher_loss: mean cross-entropy against the label, in nats.
        flipped: which labels `data.label_noise` replaced; None if it replaced none.
        helper: computes the help.
        views: number of augmented views.
        of: number of samples in the whole training split.
    """

    split: AnySplit
    help: Tensor
    student_guess: Tensor
    student_best: Tensor
    student_label: Tensor
    student_loss: Tensor
    teacher_guess: Tensor
    teacher_best: Tensor
    teacher_label: Tensor
    teacher_loss: Tensor
    flipped: Tensor | None
    helper: ExampleHelp
    views: int
    of: int

    def scores(self, by: Ranking) -> Tensor:
        """The numbers of a ranking, (N,). `RANKINGS` describes them."""
        if by not in RANKINGS:
            raise ConfigError(f"unknown ranking {by!r}; valid: {', '.join(RANKINGS)}")
        doubt = self.teacher_best - self.teacher_label
        return dict(zip(RANKINGS, (self.help, self.student_loss, self.teacher_loss, doubt), strict=True))[by]

    def ranked(self, by: Ranking = "help") -> list[int]:
        """Positions of the samples, the highest score first. Ties go by the student's loss, then by position."""
        by_loss = self.student_loss.argsort(descending=True, stable=True)
        return by_loss[self.scores(by)[by_loss].argsort(descending=True, stable=True)].tolist()


def inspect_run(
    run: Run,
    outputs: Outputs,
    *,
    teacher: RunConfig | None = None,
    views: int = 4,
    most: int | None = None,
    price: float | None = None,
) -> Inspection:
    """Help and doubt for the training samples of a run, with its student and teacher at the end of training.

    The method computes the help if it helps single examples (`disk_kd.tasks.HelpsExamples`), with all its settings.
    For other methods it is `disk_kd.tasks.default_help`.

    Args:
        run: a finished run.
        outputs: gives data and models.
        teacher: configuration that names a teacher; None: that of the run.
        views: number of augmented views of each sample, at most as many as the run had.
        most: maximum number of samples, evenly spaced; None: all.
        price: price of help; None: the price at the end of the run, or 0.

    Raises:
        ModelError: there is no teacher.
        DiskKDError: data or weights are missing, or do not fit.
    """
    teacher = run.config if teacher is None else teacher
    if teacher.teacher is None:
        raise ModelError(f"the run {run.folder} has no teacher, so there is no help to compute; give --teacher RUN")
    dataset = outputs.dataset(run.config)
    student = outputs.student(run)
    split = dataset.train
    if split.unlabelled:
        split = split.subset((split.targets != UNLABELLED).nonzero().flatten())
    if not len(split):
        raise DataError(f"the run {run.folder} has no labelled training images, so there are no labels to doubt")
    if most is not None and most < len(split):
        split = split.subset(torch.linspace(0, len(split) - 1, most).long())
    views = min(views, run.config.data.views or views) if _varies(run.config) else 1
    placed = place(split, outputs.device)
    met = [_loader(run.config, student, placed, outputs.device).batches(view) for view in range(views)]
    frozen = outputs.teacher(teacher, student)
    helper = example_help(run, student, frozen, dataset.num_classes, price)
    parts = [_columns(batches, student, frozen, helper) for batches in zip(*met, strict=True) if len(batches[0].ids)]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    split = split.subset(torch.isin(split.ids, columns.pop("ids")).nonzero().flatten())  # some may be unreadable
    flipped = _flipped(run.config, split)
    return Inspection(split, **columns, flipped=flipped, helper=helper, views=views, of=len(dataset.train))


def example_help(
    run: Run, student: nn.Module, teacher: AnyTeacher, classes: int, price: float | None = None
) -> ExampleHelp:
    """The function that computes help for a run: its method's, or `default_help` if the method has none.

    Args:
        run: a finished run.
        student: its student.
        teacher: its teacher.
        classes: C.
        price: price of help; None: the price at the end of the run, or 0.
    """
    task_class = run.config.task_class
    if not issubclass(task_class, HelpsExamples):
        return default_help(classes, price)
    task = task_class(student, teacher, **run.config.method_options)
    student.eval()  # the task sets its student to train mode
    return task.example_help((run.summary or {}).get("end", {}), price)


def _varies(config: RunConfig) -> bool:
    """Whether views of an image differ."""
    return config.data.augment != Augment() or config.data.timm.enabled


def _loader(config: RunConfig, student: nn.Module, split: AnySplit, device: torch.device) -> Loader:
    """The training views, in the order of the split."""
    mean, std = normalisation(student)
    data = config.data
    return Loader(
        split,
        batch_size=inference_batch(device),
        mean=mean,
        std=std,
        augment=data.augment,
        augment_seed=config.train.seed if data.views is None else data.view_seed,
        views=data.views,
        shuffle=False,
        drop_last=False,
        stand_in=False,
        device=device,
    )


@torch.no_grad()
def _columns(
    batches: tuple[Batch, ...], student: nn.Module, teacher: nn.Module, helper: ExampleHelp
) -> dict[str, Tensor]:
    """Columns of an inspection for the same samples under each view."""
    targets_B = batches[0].targets
    logits = [(student(batch.images).float(), teacher(batch.images)["logits"]) for batch in batches]
    columns = {"ids": batches[0].ids}
    columns["help"] = torch.stack([helper(s_BC, t_BC, targets_B) for s_BC, t_BC in logits]).mean(0)
    for name, logits_VBC in zip(("student", "teacher"), zip(*logits, strict=True), strict=True):
        log_p_VBC = torch.stack(logits_VBC).log_softmax(2)
        p_BC = log_p_VBC.exp().mean(0)
        columns[f"{name}_best"], columns[f"{name}_guess"] = p_BC.max(1)
        columns[f"{name}_label"] = p_BC.gather(1, targets_B[:, None]).squeeze(1)
        columns[f"{name}_loss"] = -log_p_VBC.mean(0).gather(1, targets_B[:, None]).squeeze(1)
    return {name: column.cpu() for name, column in columns.items()}


def _flipped(config: RunConfig, split: AnySplit) -> Tensor | None:
    """Which labels the run's `data.label_noise` replaced."""
    if not config.data.label_noise:
        return None
    clean = load_data(replace(config.data, label_noise=0.0)).train
    true = torch.full((int(clean.ids.max()) + 1,), -1).scatter(0, clean.ids, clean.targets)
    return true[split.ids] != split.targets
