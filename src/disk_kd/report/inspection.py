"""The examples of the training split that the helper of DiSK carries most, or whose labels are doubtful.

Shape letters: B batch, N samples, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from disk_kd.build import load_data
from disk_kd.config import RunConfig, find_method
from disk_kd.data import AnySplit, Augment, Batch, Loader
from disk_kd.devices import inference_batch, place
from disk_kd.errors import ConfigError, ModelError
from disk_kd.helpers import exact_helper
from disk_kd.losses import standardise
from disk_kd.report.outputs import Outputs
from disk_kd.report.reading import Run
from disk_kd.tasks import VARIANTS, DiSKTask
from disk_kd.trained import normalisation

Ranking = Literal["help", "student-loss", "teacher-loss", "teacher-doubt"]
RANKINGS: dict[Ranking, str] = {
    "help": "mean g over the views",
    "student-loss": "mean cross-entropy of the student against the label",
    "teacher-loss": "mean cross-entropy of the teacher against the label",
    "teacher-doubt": "teacher's probability of its guess, less that of the label",
}
"""What the samples can be ranked by, the highest first."""

_SETTINGS = ("top_k", "student_temperature", "teacher_temperature", "max_ce")


@dataclass(frozen=True)
class HelperSettings:
    """Keywords of `exact_helper`."""

    top_k: int
    student_temperature: float
    teacher_temperature: float
    max_ce: float
    price: float = 0.0
    unit: Any = "ce"
    mass: float = 1.0
    outside_student: bool = False
    standardise: bool = False

    @classmethod
    def of(cls, run: Run, classes: int, price: float | None = None) -> HelperSettings:
        """The exact helper of a run.

        A run of DiSK, or of a class that derives from it, gives its temperatures, support and unit, and its price at
        the end if its helper was exact. Otherwise the normalised form's defaults hold, at price 0.

        Args:
            run: of any method.
            classes: C, the largest `top_k`.
            price: in the place of the run's.
        """
        config = run.config
        options = config.method_options if issubclass(find_method(config.method), DiSKTask) else {}
        default = VARIANTS["normalised"]
        given = {name: options.get(name) for name in _SETTINGS}
        chosen = {name: getattr(default, name) if value is None else value for name, value in given.items()}
        most = classes if options.get("support") == "all" else chosen["top_k"]
        settings = cls(**chosen | {"top_k": min(most, classes)})
        if options.get("helper") == "exact":
            at_end = (run.summary or {}).get("end", {}).get("price", 0.0)
            settings = replace(
                settings,
                price=at_end,
                unit=options.get("budget_unit", "ce"),
                mass=options.get("support_mass", 1.0),
                outside_student=options.get("support") == "outside-student",
                standardise=options.get("standardise", False),
            )
        return settings if price is None else replace(settings, price=price)

    def help(self, student_BC: Tensor, teacher_BC: Tensor, targets_B: Tensor) -> Tensor:
        """g of each sample, (B,)."""
        keywords = asdict(self)
        both = (student_BC, teacher_BC)
        if keywords.pop("standardise"):
            both = (standardise(student_BC), standardise(teacher_BC))
        return exact_helper(*both, targets_B, priced_logits=student_BC, **keywords)

    def told(self) -> str:
        """In words."""
        temperatures = f"{self.student_temperature:g} and {self.teacher_temperature:g}"
        return f"price {self.price:.4g}, top {self.top_k} classes, temperatures {temperatures} (student, teacher)"


@dataclass(frozen=True, eq=False)
class Inspection:
    """What student and teacher say of the samples of a split; all (N,), means over the views.

    Attributes:
        split: the samples.
        help: g.
        student_guess, teacher_guess: the class with the highest mean probability.
        student_label, teacher_label: mean probability of the label.
        student_best, teacher_best: mean probability of the guess.
        student_loss, teacher_loss: mean cross-entropy against the label, nats.
        flipped: which labels are wrong on purpose; None where none is.
        settings: of the helper.
        views: how many augmented views there were.
        of: samples in the whole training split.
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
    settings: HelperSettings
    views: int
    of: int

    def scores(self, by: Ranking) -> Tensor:
        """What `RANKINGS` tells of, (N,)."""
        if by not in RANKINGS:
            raise ConfigError(f"unknown ranking {by!r}; valid: {', '.join(RANKINGS)}")
        doubt = self.teacher_best - self.teacher_label
        return dict(zip(RANKINGS, (self.help, self.student_loss, self.teacher_loss, doubt), strict=True))[by]

    def ranked(self, by: Ranking = "help") -> list[int]:
        """Positions of the samples, the highest score first; ties by the student's loss, then in their order."""
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
    """The help of the exact helper for the training samples of a run, with its student and teacher as they are now.

    Args:
        run: a finished run.
        outputs: gives data and models.
        teacher: the configuration that names a teacher; None: the run's own.
        views: augmented views of each sample, as in training; at most those that the run had.
        most: samples at most, evenly spaced; None: all.
        price: of help; None: as `HelperSettings.of`.

    Raises:
        ModelError: there is no teacher.
        DiskKDError: data or weights are missing, or do not fit.
    """
    teacher = run.config if teacher is None else teacher
    if teacher.teacher is None:
        raise ModelError(f"the run {run.folder} has no teacher, and help is of a student towards a teacher")
    dataset = outputs.dataset(run.config)
    student = outputs.student(run)
    settings = HelperSettings.of(run, dataset.num_classes, price)
    split = dataset.train
    if most is not None and most < len(split):
        split = split.subset(torch.linspace(0, len(split) - 1, most).long())
    views = min(views, run.config.data.views or views) if _varies(run.config) else 1
    placed = place(split, outputs.device)
    met = [_loader(run.config, student, placed, outputs.device).batches(view) for view in range(views)]
    look = outputs.teacher(teacher, student)
    parts = [_look(batches, student, look, settings) for batches in zip(*met, strict=True) if len(batches[0].ids)]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    split = split.subset(torch.isin(split.ids, columns.pop("ids")).nonzero().flatten())  # some may be unreadable
    flipped = _flipped(run.config, split)
    return Inspection(split, **columns, flipped=flipped, settings=settings, views=views, of=len(dataset.train))


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
def _look(
    batches: tuple[Batch, ...], student: nn.Module, teacher: nn.Module, settings: HelperSettings
) -> dict[str, Tensor]:
    """Columns of an inspection for the same samples under each view."""
    targets_B = batches[0].targets
    logits = [(student(batch.images).float(), teacher(batch.images)["logits"]) for batch in batches]
    columns = {"ids": batches[0].ids}
    columns["help"] = torch.stack([settings.help(s_BC, t_BC, targets_B) for s_BC, t_BC in logits]).mean(0)
    for name, of_views in zip(("student", "teacher"), zip(*logits, strict=True), strict=True):
        log_p_VBC = torch.stack(of_views).log_softmax(2)
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
