"""Logit distillation by the Wasserstein distance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ConfigError, DataError, ModelError
from disk_kd.logits import class_count
from disk_kd.losses.class_costs import cka_relations, class_costs, classifier_relations
from disk_kd.losses.wkd import check_sinkhorn, wkd_loss
from disk_kd.support import UNLABELLED
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.logit_task import LogitTask
from disk_kd.tasks.snapshot import snapshot


class WKDTask(LogitTask):
    """Wasserstein KD: the student's probability is moved to the teacher's classes; similar classes cost little.

    loss = ce_weight cross_entropy(s, y) + wkd_weight WKD-L

    Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS
    2024, the loss WKD-L. `disk_kd.losses.wkd` has the formula, `disk_kd.losses.class_costs` the costs. The defaults are
    the paper's for ImageNet.

    How alike two classes are is read from the teacher before training. With relations "classifier" it is the cosine of
    their rows in the teacher's linear classifier. With "cka", the paper's choice, it is the alignment of the teacher's
    logits of `relation_images` training images of either class, which a run takes from its first epoch, stored or not;
    in a loop of your own call `begin` once.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        transport_weight: Weight of the transport part, beside the label's part.
        decay: Student epochs (first, last) over which `transport_weight` falls to 0 along half a cosine. null keeps it
            constant. The paper's release has (0, 100) of 100 for ImageNet and (150, 240) of 240 for CIFAR-100.
        temperature: Temperature of student and teacher in the transport.
        relations: Source of the class similarities: "classifier" or "cka".
        relation_images: Number of training images of each class that "cka" compares, at least 2.
        sharpness: Rate at which the cost rises as classes become less similar.
        smoothing: Weight of the entropy of the transport plan, at least 0.025.
        iterations: Number of iterations of Sinkhorn's algorithm.
        separate: Give the label a separate part of the loss. false transports over all classes, which mixed labels and
            images without labels need.
        ce_weight: Weight of the cross-entropy on the labels.
        wkd_weight: Weight of the distillation loss.
        warmup_epochs: Number of student epochs over which the weight of the distillation loss rises from 0.
        standardise: Standardise each row of logits to mean 0 and standard deviation 1 first (Sun et al., CVPR 2024).
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).

    Raises:
        ConfigError: a setting is out of range.
        ModelError: teacher and student differ in their number of classes; or the teacher has no linear classifier to
            read.
    """

    unlabelled_use = "wkd treats the label separately; give method.separate=false, or use kd"
    costs_CC: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        transport_weight: float = 30.0,
        decay: tuple[float, float] | None = None,
        temperature: float = 2.0,
        relations: Literal["classifier", "cka"] = "classifier",
        relation_images: int = 100,
        sharpness: float = 1.0,
        smoothing: float = 0.05,
        iterations: int = 10,
        separate: bool = True,
        ce_weight: float = 1.0,
        wkd_weight: float = 1.0,
        warmup_epochs: float = 0.0,
        standardise: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="wkd",
            weight=wkd_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            standardise=standardise,
            label_smoothing=label_smoothing,
        )
        check_sinkhorn(smoothing, iterations)
        if relations not in ("classifier", "cka"):
            raise ConfigError(f"relations must be classifier or cka, not {relations!r}")
        if relation_images < 2:
            raise ConfigError(f"relation_images must be at least 2, not {relation_images}; give 100")
        if decay is not None and not 0 <= decay[0] < decay[1] < math.inf:
            raise ConfigError(f"decay must be two epochs, the later one second, not {list(decay)}; give [150, 240]")
        self.transport_weight, self.decay = non_negative("transport_weight", transport_weight), decay
        self.terms: dict[str, Any] = {
            "temperature": positive("temperature", temperature),
            "smoothing": smoothing,
            "iterations": iterations,
        }
        self.relations, self.relation_images = relations, relation_images
        self.sharpness = positive("sharpness", sharpness)
        self.separate = separate
        self.mixes = self.unlabelled = not separate
        assert self.teacher is not None
        model = unwrap_model(self.teacher.model)
        classifier_CF = None if relations == "cka" else _classifier(model, class_count(self.student))
        self._knows_costs = classifier_CF is not None
        if classifier_CF is None:  # until `begin`
            costs_CC = torch.zeros(0, 0)
        else:
            costs_CC = class_costs(classifier_relations(classifier_CF), sharpness=self.sharpness)
        self.register_buffer("costs_CC", costs_CC.to(self.device), persistent=False)

    def begin(self, batches: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> None:
        """With relations "cka", learn the costs from the teacher's logits; else nothing.

        Args:
            batches: of training images, labels (B,) and stored outputs, which may be empty. It stops where each class
                has `relation_images`; where the batches end first, the class that has the fewest sets the number.

        Raises:
            DataError: a class has fewer than 2 images.
        """
        if self.relations != "cka":
            return
        logits_CNF = self._logits_of_classes(batches)
        self.costs_CC = class_costs(cka_relations(logits_CNF), sharpness=self.sharpness).to(self.device)
        self._knows_costs = True

    @torch.no_grad()
    def _logits_of_classes(self, batches: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> Tensor:
        kept: dict[int, list[Tensor]] = {}
        for images, targets, stored in batches:
            logits_BC = self.teacher_outputs(images, stored)["logits"]
            kept = kept or {label: [] for label in range(logits_BC.shape[1])}
            for label, row_C in zip(targets.tolist(), logits_BC, strict=True):
                if label != UNLABELLED and len(kept[label]) < self.relation_images:
                    kept[label].append(row_C)
            if all(len(rows) == self.relation_images for rows in kept.values()):
                break
        fewest = min(map(len, kept.values()), default=0)
        if fewest < 2:
            raise DataError(
                f"relations cka needs 2 training images of each class, a class has {fewest}; give relations=classifier"
            )
        return torch.stack([torch.stack(rows[:fewest]) for rows in kept.values()])

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        if not self._knows_costs:
            raise ConfigError(
                "the relations of the classes are not known yet: call begin, or give relations=classifier"
            )
        given = target if self.separate else None
        return wkd_loss(student, teacher, given, self.costs_CC, weight=self._transport_weight(), **self.terms)

    def _transport_weight(self) -> Tensor | float:
        """What the schedule has come to."""
        if self.decay is None:
            return self.transport_weight
        start, end = self.decay
        epochs = snapshot(self.step) / self.steps_per_epoch
        share = ((epochs - start) / (end - start)).clamp(0, 1)
        return self.transport_weight * (1 + torch.cos(math.pi * share)) / 2


def _classifier(teacher: Any, classes: int | None) -> Tensor:
    """The rows (C, F) of the teacher's linear classifier.

    Raises:
        ModelError: it has none.
    """
    head = teacher.get_classifier() if hasattr(teacher, "get_classifier") else None
    parts = list((head if isinstance(head, nn.Module) else teacher).modules())
    linear = [part for part in parts if isinstance(part, nn.Linear) and classes in (None, part.out_features)]
    if not linear:
        raise ModelError(
            f"{type(teacher).__name__} has no linear classifier that tells how alike classes are; give relations=cka"
        )
    return linear[-1].weight
