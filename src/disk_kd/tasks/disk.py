"""DiSK: a scaffold for the student on the examples that it cannot follow.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd import ranks
from disk_kd.errors import ConfigError, nearest
from disk_kd.helpers import HELPERS, UNITS, HelperNetwork, Unit, exact_helper, make_helper
from disk_kd.logits import class_count
from disk_kd.losses import budget_penalty, scaffolded_kl, scaffolded_nll
from disk_kd.support import label_cross_entropy, with_teacher_class
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.checks import fraction
from disk_kd.tasks.disk_help import ExactHelp
from disk_kd.tasks.disk_settings import disk_settings, variant_defaults
from disk_kd.tasks.phase import Phase
from disk_kd.tasks.quantity import Quantity
from disk_kd.tasks.schedule import Cosine, scheduled
from disk_kd.tasks.snapshot import snapshot
from disk_kd.tasks.student_and_helper import StudentAndHelper
from disk_kd.teacher import feature_sizes

RELATIVE_RATE = 0.02
"""Of the relative ascent: where help falls as 1 / price, an error of the budget is gone after some fifty steps."""

HIGHEST_PRICE = 1e6
"""Where the ascent ends for a budget that no finite price meets."""

HELPER_WARMUP_END = 0.3
"""Share of the peak learning rate that a helper network's warm-up epochs end with, as in the release."""

HELPED = 1e-3
"""In the log an example counts as helped above this g."""

_BUDGET_UNITS = {"ce": "mean g × CE, nats", "help": "mean g", "examples": "share helped"}
"""What a `budget_unit` means, in words."""

Support = Literal["teacher", "all", "outside-student"]
"""Which classes may be helped."""

ScaffoldInputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""What every scaffolded loss reads: student logits (B, C), teacher logits (B, C), targets (B,), helper (B,)."""


class DiSKTask(StudentTask):
    """DiSK: distillation with a helper g(x) in [0, 1] that supports the student where it cannot follow the teacher.

    normalised (default)
        student  ce_weight CE(s, y) + kd_weight T_s T_t KL(t || q),  q_y = (s_y + g 1[y in M]) / (1 + |M| g)
        helper   KL(t || q) + price mean_i g_i min(CE_i, max_ce), solved exactly per example, or trained
        price    max(0, price + step), once a step, with used = mean_i g_i min(CE_i, max_ce)
                 step = .02 (1 + price) min((used - budget) / budget, 10), or price_rate (used - budget)
    paper, imagenet
        the release's forms for CIFAR and ImageNet, from `scaffolded_nll` and `budget_penalty`

    M is the teacher's top-K united with the label, CE_i the cross-entropy of the untempered student. For an image
    without a label, the teacher's first class is y there; CE(s, y) counts the labelled images alone. A setting
    left at None takes the variant's value from `VARIANTS`.

    In a plain loop a helper network and the student move at once, each by its own loss. `phases` alternates them
    as the paper does, and the project's loop follows it: helper epochs first, then rounds of student epochs and
    helper epochs, each round at the budget and price of its beginning. In variant "imagenet" one loss always moves
    both.

    Sources: Kag et al., "Scaffolding a Student to Instill Knowledge", ICLR 2023; the normalised form and the
    exact helper are this project's (docs/math.md).

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        variant: Form of the method: normalised (this project's), paper or imagenet (the release's).
        helper: Helper: "exact" (normalised only), the name of a network (`disk_kd.helpers.HELPERS`), or a constant g
            from 0 to 1.
        top_k: Number K of the teacher's top classes in the support M. The minimum is 0 (released forms: 1); numbers
            above the number of classes mean all classes.
        support: Choice of the support M: the teacher's top K, all classes, or the classes outside the student's own top
            K. The label always belongs to M (normalised only).
        support_mass: Keep only the first of the teacher's top K classes whose probabilities reach this sum (normalised
            only).
        student_temperature: Temperature T_s of the student.
        teacher_temperature: Temperature T_t of the teacher.
        kd_weight: Weight of the scaffolded divergence.
        ce_weight: Weight of the cross-entropy on the labels.
        budget: Allowed help: a number, or a `Cosine` over student epochs.
        budget_unit: Unit of the budget: "ce", g min(CE, max_ce) in nats; "help", g; "examples", the share of images
            that get help. The last two are normalised only.
        price: Price of help. With `price_rate` 0 it is used as given; otherwise dual ascent starts from it.
        price_rate: Rate rho of the plain dual ascent rho (used - budget), or "relative": the ascent above, the default
            with the exact helper. "relative" meets budgets of every unit, down to a tenth of an image in a batch.
        max_ce: Cap of CE_i in nats.
        fill: Released forms: the target off the support is the row's smallest logit, or zero.
        against: Released forms: CE_i is taken against the teacher's argmax, or against the label.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 before the scaffold. Prices and
            budgets keep the plain cross-entropy.
        label_smoothing: Label smoothing of the cross-entropy on the labels, in [0, 1).
        student_epochs: Number of student epochs in a round of the alternation (networks only).
        helper_epochs: Number of helper epochs in a round.
        helper_warmup_epochs: Number of helper epochs before the first round. Their learning rate falls to 0.3 of its
            peak.
        steps_per_epoch: number of batches in an epoch. Schedules need it to convert steps to epochs.

    Raises:
        ConfigError: an unknown variant or helper, a constant outside [0, 1], a negative `top_k`,
            a temperature that is not positive, a negative weight, an option that the form does not have, "exact" with a
            released form.
        ModelError: teacher and student differ in their number of classes.

    Example:
        >>> import timm, torch, disk_kd
        >>> student, teacher = (timm.create_model(f"cifar_resnet10_{n}", num_classes=10) for n in ("xxs", "s"))
        >>> task = disk_kd.DiSKTask(student, teacher)
        >>> task(torch.randn(4, 3, 32, 32), torch.arange(4))["loss"].backward()
    """

    unlabelled_use = (
        "the teacher's first class stands for the missing label in the support, the price and the budget; the"
        " cross-entropy counts the labelled images"
    )
    fixed_student_phases = frozenset({"helper"})
    price: Tensor
    excess: Tensor
    calls: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        variant: Literal["normalised", "paper", "imagenet"] = "normalised",
        helper: float | str | None = None,
        top_k: int | None = None,
        support: Support = "teacher",
        support_mass: float = 1.0,
        student_temperature: float | None = None,
        teacher_temperature: float | None = None,
        kd_weight: float | None = None,
        ce_weight: float | None = None,
        budget: float | Cosine | None = None,
        budget_unit: Unit = "ce",
        price: float | Cosine | None = None,
        price_rate: float | Literal["relative"] | None = None,
        max_ce: float | None = None,
        fill: Literal["min", "zero"] = "min",
        against: Literal["teacher", "label"] = "teacher",
        standardise: bool = False,
        label_smoothing: float = 0.0,
        student_epochs: int = 3,
        helper_epochs: int = 3,
        helper_warmup_epochs: int = 5,
        steps_per_epoch: int = 1,
    ) -> None:
        _check_epochs(student_epochs, helper_epochs, helper_warmup_epochs)
        classes = _classes(student, teacher)
        settings = disk_settings(
            variant,
            classes=classes,
            helper=helper,
            top_k=_every_class(top_k, classes) if support == "all" else top_k,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            budget=budget,
            price=price,
            price_rate=price_rate,
            max_ce=max_ce,
        )
        network = _network(settings.helper, student, teacher)
        needs: frozenset[str] = frozenset({"logits"})
        phases: tuple[Phase, ...] = (Phase("student"),)
        if network is not None:
            reads = {name.removeprefix("teacher_") for name in network.needs if name.startswith("teacher_")}
            needs = frozenset({"logits"} | reads)
            phases = _alternation(student_epochs, helper_epochs, helper_warmup_epochs)
            if variant == "imagenet":
                phases = (Phase("joint", "trainable_module"),)
        super().__init__(student, teacher, needs=needs, phases=phases)
        if network is not None:
            self.trainable_module = StudentAndHelper(student, network.to(self.device))
        self.variant = variant
        # The released forms tell the label from all other classes.
        self.mixes = variant == "normalised"
        self.settings = settings
        self.fill = fill
        self.against = against
        self._check_normalised_options(support, support_mass, budget_unit)
        self.outside_student = support == "outside-student"
        self.support_mass = support_mass
        self.budget_unit = budget_unit
        # The released fill is the row's smallest logit, which only a whole row tells.
        whole_rows = variant != "normalised" and fill == "min"
        self.top_logits = 0 if self.outside_student else (classes or sys.maxsize) if whole_rows else settings.top_k
        self.standardise = standardise
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.steps_per_epoch = steps_per_epoch
        self.student_epochs = student_epochs
        start = settings.price.start if isinstance(settings.price, Cosine) else settings.price
        self.register_buffer("price", torch.tensor(float(start), device=self.device))
        # Help beyond the budget so far in a step of several micro-batches, and the calls that count them.
        self.register_buffer("excess", torch.zeros((), device=self.device))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=self.device))

    @classmethod
    def with_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The variant's settings in place of None, but for `top_k`, which also depends on the classes.

        Raises:
            ConfigError: the variant is unknown.
        """
        return options | variant_defaults(options)

    @classmethod
    def quantities(cls, options: Mapping[str, Any]) -> tuple[Quantity, ...]:
        """Budget, help given, price, mean g and the share of helped examples, as `forward` returns them.

        A constant helper follows no budget: only the help given counts there.
        """
        unit = _BUDGET_UNITS.get(options.get("budget_unit", "ce"), "")
        constant = isinstance(options.get("helper"), int | float)
        budget = Quantity("budget", "Budget", unit, "Help that is allowed.", column="budget")
        met = "" if constant else " The budget is met where the line is at or below the dots."
        return (
            *(() if constant else (budget,)),
            Quantity(
                "budget_used",
                "Budget used",
                unit,
                f"Help that was given.{met}",
                limit=None if constant else "budget",
                progress=True,
                column="used",
                log_axis=True,
            ),
            Quantity(
                "price",
                "Price of help",
                "nats of KL per unit",
                "It rises while more help is used than the budget allows, else it falls.",
                reduction="last",
                progress=True,
            ),
            Quantity("helper_mean", "Mean g", "g", "Mean help of an example; 0 is none, 1 is all.", log_axis=True),
            Quantity("helped", "Share helped", "share of examples", f"Share of examples with g above {HELPED:g}."),
        )

    @property
    def helper(self) -> nn.Module | None:
        """The helper network; None where the helper is exact or constant."""
        module = unwrap_model(self.trainable_module)
        return module.helper if isinstance(module, StudentAndHelper) else None

    def _check_normalised_options(self, support: str, support_mass: float, budget_unit: str) -> None:
        """Options that the form does not have, and the unit that no network can be trained by."""
        if support not in get_args(Support):
            raise ConfigError(f"unknown support {support!r}; {nearest(support, get_args(Support))}")
        if not 0 < support_mass <= 1:
            raise ConfigError(f"support_mass must be above 0 and at most 1, not {support_mass}")
        if support == "outside-student" and support_mass < 1:
            raise ConfigError("support_mass applies to the teacher's top K, which support outside-student does not use")
        if budget_unit not in UNITS:
            raise ConfigError(f"unknown budget_unit {budget_unit!r}; {nearest(budget_unit, UNITS)}")
        if self.variant != "normalised" and (support, support_mass, budget_unit) != ("teacher", 1.0, "ce"):
            raise ConfigError(
                f"support, support_mass and budget_unit are of the normalised form, not of {self.variant}"
            )
        if self.variant == "normalised" and (self.fill, self.against) != ("min", "teacher"):
            raise ConfigError("fill and against are of the released forms; the normalised one has neither")
        if self.helper is not None and budget_unit == "examples":
            raise ConfigError("a helper network has no gradient from helped examples; take budget_unit ce or help")

    def forward(self, input: Tensor, target: Tensor, teacher: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss of a batch in the selected phase; in train mode it also moves the schedules and the price.

        Args:
            input: (B, C, H, W), normalised for the student.
            target: (B,) class indices, -100 for an image without a label; or (B, C) shares of the classes in mixed
                images (normalised only).
            teacher: stored outputs, as `needs` says; the teacher runs when there are none.

        Returns:
            `loss`, `output` (the student's logits), and for the log `ce_loss`, `scaffold_loss`, `budget` and
            `budget_used` (in `budget_unit`), `price`, `helped` (share of examples with g above 0.001), `helper_mean`.
        """
        teacher = self.teacher_outputs(input, teacher)
        epochs = self.clock()
        budget = scheduled(self.settings.budget, epochs)
        price = snapshot(self.price) if self.settings.price_rate else scheduled(self.settings.price, epochs)
        labels, target = target, with_teacher_class(target, teacher["logits"])
        logits_BC, helper_B, hint_loss = self._student_and_helper(input, target, teacher, price)
        helper_B = self.adjust_help(helper_B, logits_BC, target, teacher)
        ce = self.label_loss(logits_BC, labels, self.label_smoothing)
        joint = self.variant == "imagenet"
        batch = (logits_BC, teacher["logits"], target, helper_B)

        if self.phase == "helper":
            scaffold = self._scaffold(batch)
            loss = self._helper_weight * scaffold + self._penalty(batch, budget, price)
        else:
            scaffold = self._scaffold(batch if joint else (*batch[:3], helper_B.detach()))
            loss = self.settings.ce_weight * ce + self.settings.kd_weight * scaffold
            if self.helper is not None and joint:
                loss = loss + self._penalty(batch, budget, price)
            elif self.helper is not None and self.phase is None:
                fixed = (logits_BC.detach(), *batch[1:])
                loss = loss + self._helper_weight * self._scaffold(fixed) + self._penalty(fixed, budget, price)

        helper_B = helper_B.detach()
        used = self._budget_used((logits_BC.detach(), *batch[1:3], helper_B))
        if self.training and torch.is_grad_enabled():
            self.update_price(used, budget)
        return self.result(
            loss,
            logits_BC,
            hint_loss,
            ce_loss=ce,
            scaffold_loss=scaffold,
            budget=budget,
            budget_used=used,
            price=price,
            helped=(helper_B > HELPED).float().mean(),
            helper_mean=helper_B.mean(),
        )

    def clock(self) -> Tensor:
        """The time of the schedules in student epochs, a 0-dim tensor.

        In an alternation's phases it is the beginning of the round, which helper epochs share with the student epochs
        before them; the warm-up is at 0. Elsewhere it is the student epochs so far, by the step.
        """
        step = snapshot(self.step)
        if self.phase is None or len(self.phases) == 1:
            return step / self.steps_per_epoch
        done = step if self.phase == "student" else (step - 1).clamp(min=0)
        return done // (self.student_epochs * self.steps_per_epoch) * float(self.student_epochs)

    def adjust_help(self, helper_B: Tensor, logits_BC: Tensor, target: Tensor, teacher: Mapping[str, Tensor]) -> Tensor:
        """The help that the loss uses, (B,). A subclass changes it here; this class takes it as it comes.

        Args:
            helper_B: g of the exact helper, the network or the constant; in phases that train a network with gradients.
            logits_BC: of the student.
            target: class indices (B,) or class probabilities (B, C).
            teacher: the teacher's outputs, and the samples' "ids" if `needs_ids`.
        """
        return helper_B

    def example_help(self, logged: Mapping[str, float], price: float | None = None) -> ExactHelp:
        """The exact helper with the support and the temperatures of this task (`disk_kd.tasks.HelpsExamples`).

        Args:
            logged: numbers at the end of a run. Its price counts if the task's helper is exact, else the price is 0.
            price: in the place of that price.
        """
        found = ExactHelp.from_settings(self.settings)
        if self.settings.helper == "exact":
            found = replace(
                found,
                price=logged.get("price") or 0.0,
                unit=self.budget_unit,
                mass=self.support_mass,
                outside_student=self.outside_student,
                standardise=self.standardise,
            )
        return found if price is None else replace(found, price=price)

    def _student_and_helper(
        self, input: Tensor, target: Tensor, teacher: dict[str, Tensor], price: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, C), g (B,), and the loss of a hint if there is one."""
        if self.helper is not None:
            logits_BC, helper_B, hint_loss = self.trainable_module(input, target, teacher, self.phase)
            return logits_BC, helper_B, None if hint_loss is None else self.hint_ramp() * hint_loss
        logits_BC, hint_loss = self.student_outputs(input, target, teacher)
        if self.settings.helper != "exact":
            return (
                logits_BC,
                logits_BC.new_full(target.shape[:1], float(self.settings.helper), dtype=torch.float32),
                hint_loss,
            )
        helper_B = exact_helper(
            *self.prepare_logits(logits_BC, teacher["logits"]),
            target,
            price=price,
            max_ce=self.settings.max_ce,
            unit=self.budget_unit,
            priced_logits=logits_BC,
            **self._support_and_temperatures(),
        )
        return logits_BC, helper_B, hint_loss

    def _scaffold(self, batch: ScaffoldInputs) -> Tensor:
        """The student's divergence from the teacher, with help and with the temperatures' factor."""
        student_BC, teacher_BC, target_B, helper_B = batch
        batch = (*self.prepare_logits(student_BC, teacher_BC), target_B, helper_B)
        terms = self._support_and_temperatures()
        if self.variant == "normalised":
            return self._temperature_factor * scaffolded_kl(*batch, **terms)
        return scaffolded_nll(*batch, fill=self.fill, **terms)

    def _penalty(self, batch: ScaffoldInputs, budget: Tensor, price: Tensor) -> Tensor:
        """The price of the help, for a helper network."""
        if self.variant == "normalised":
            return price * self._budget_used(batch)
        return self._released_penalty(batch, budget, price, self.settings.kd_weight if self.variant == "paper" else 0.0)

    def _budget_used(self, batch: ScaffoldInputs) -> Tensor:
        """The help given, in the variant's unit or in `budget_unit`."""
        if self.variant != "normalised":
            return self._released_penalty(batch, budget=0.0, price=1.0, weight=0.0)
        logits_BC, _, target_B, helper_B = batch
        if self.budget_unit == "examples":
            return (helper_B > 0).float().mean()
        if self.budget_unit == "help":
            return helper_B.mean()
        ce_B = label_cross_entropy(logits_BC.float(), target_B)
        return (helper_B * ce_B.clamp(max=self.settings.max_ce)).mean()

    def _released_penalty(
        self, batch: ScaffoldInputs, budget: float | Tensor, price: float | Tensor, weight: float
    ) -> Tensor:
        return budget_penalty(
            *batch,
            budget=budget,
            price=price,
            max_ce=self.settings.max_ce,
            top_k=self.settings.top_k,
            weight=weight,
            against=self.against,
        )

    @torch.no_grad()
    def update_price(self, used: Tensor, budget: Tensor) -> None:
        """One step of the price in training. A subclass changes it here.

        A constant helper does not depend on the price, so the price stays.

        Args:
            used: help of the batch, a scalar in the unit of the budget.
            budget: help that is allowed, a scalar.
        """
        moves = self.settings.helper == "exact" or (self.helper is not None and self.phase != "student")
        if self.settings.price_rate and moves:
            over = ranks.mean(used) - budget
            # A batch that is not finite is no reason to pay another price.
            self.excess += torch.where(over.isfinite(), over, 0.0) / self.micro_batches
            self.calls += 1
            whole_step = self.calls % self.micro_batches == 0
            highest = min(HIGHEST_PRICE, torch.finfo(self.price.dtype).max)  # float16 holds less
            moved = (self.price + self._price_step(budget)).clamp(min=0, max=highest)
            self.price.copy_(torch.where(whole_step, moved, self.price))
            self.excess *= ~whole_step

    def _price_step(self, budget: Tensor) -> Tensor:
        rate = self.settings.price_rate
        if isinstance(rate, str):
            over = self.excess / budget.clamp(min=torch.finfo(budget.dtype).tiny)
            return RELATIVE_RATE * (1 + self.price) * over.clamp(max=10)
        return rate * self.excess

    @property
    def _temperature_factor(self) -> float:
        """T_s T_t, the factor of tempered divergences."""
        return self.settings.student_temperature * self.settings.teacher_temperature

    @property
    def _helper_weight(self) -> float:
        """Of the divergence in a helper network's loss; the normalised form prices the divergence without T_s T_t."""
        return 1 / self._temperature_factor if self.variant == "normalised" else self.settings.kd_weight

    def _support_and_temperatures(self) -> dict[str, Any]:
        terms: dict[str, Any] = {
            "top_k": self.settings.top_k,
            "student_temperature": self.settings.student_temperature,
            "teacher_temperature": self.settings.teacher_temperature,
        }
        if self.variant == "normalised":
            terms |= {"mass": self.support_mass, "outside_student": self.outside_student}
        return terms


def _classes(*models: nn.Module) -> int | None:
    """The number of classes, as the first of these models says that says it."""
    counts = (class_count(unwrap_model(model)) for model in models)
    return next((count for count in counts if count is not None), None)


def _every_class(top_k: int | None, classes: int | None) -> int:
    """K of the support "all"."""
    if classes is None:
        raise ConfigError(
            "support all needs a model that says its num_classes; give top_k, the number of classes, instead"
        )
    if top_k is not None and top_k < classes:
        raise ConfigError(f"support all takes all {classes} classes, not {top_k}; leave out top_k, or support")
    return classes


def _check_epochs(student_epochs: int, helper_epochs: int, helper_warmup_epochs: int) -> None:
    if student_epochs < 1:
        raise ConfigError(f"student_epochs must be at least 1, not {student_epochs}")
    for name, epochs in (("helper_epochs", helper_epochs), ("helper_warmup_epochs", helper_warmup_epochs)):
        if epochs < 0:
            raise ConfigError(f"{name} must be at least 0, not {epochs}")


def _alternation(student_epochs: int, helper_epochs: int, helper_warmup_epochs: int) -> tuple[Phase, ...]:
    """The paper's rounds: epochs of the student with the helper fixed, then of the helper with the student fixed."""
    return (
        Phase("student", epochs=student_epochs),
        Phase("helper", "helper", False, helper_epochs, helper_warmup_epochs, HELPER_WARMUP_END),
    )


def _network(helper: float | str, student: nn.Module, teacher: nn.Module) -> HelperNetwork | None:
    """The helper network of that name, with the sizes of this student and teacher."""
    if not isinstance(helper, str) or helper not in HELPERS:
        return None
    student_sizes, teacher_sizes = feature_sizes(student), feature_sizes(teacher)
    return make_helper(
        helper,
        num_classes=student_sizes["logits"],
        student_channels=student_sizes["map"],
        teacher_channels=teacher_sizes["map"],
        student_features=student_sizes["pooled"],
        teacher_features=teacher_sizes["pooled"],
    )
