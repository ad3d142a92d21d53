"""Forms of DiSK, and controls for it, that were tried (docs/log.md, lesson 7) and are not part of the package.

Run from this folder: disk-kd distill RECIPE --method hypotheses:MemoryDiSK ...
Legend: B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.support import log_probabilities
from disk_kd.tasks import DiSKTask
from disk_kd.tasks.gce import GCETask
from disk_kd.tasks.logit_task import LogitTask
from disk_kd.tasks.snapshot import snapshot


class MemoryDiSK(DiSKTask):
    """Help follows the example, not the moment: g is the running mean of the exact g over the example's visits.

    Args:
        momentum: weight of the past in the mean.
        samples: one more than the largest id.
        options: of `DiSKTask`.
    """

    needs_ids = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        momentum: float = 0.8,
        samples: int = 50_000,
        **options: Any,
    ) -> None:
        super().__init__(student, teacher, **options)
        self.momentum = momentum
        self.register_buffer("memory", torch.zeros(samples, device=self.device))
        self.register_buffer("visits", torch.zeros(samples, device=self.device))

    def adjust_help(self, helper_B: Tensor, logits_BC: Tensor, target: Tensor, teacher: Mapping[str, Tensor]) -> Tensor:
        ids_B = teacher["ids"]
        # The mean of the first visits, then a running one.
        keep_B = (self.visits[ids_B] / (self.visits[ids_B] + 1)).clamp(max=self.momentum)
        mean_B = snapshot(keep_B * self.memory[ids_B] + (1 - keep_B) * helper_B)
        if self.training:
            self.memory[ids_B] = mean_B
            self.visits[ids_B] += 1
        return mean_B


class ClassStopDiSK(DiSKTask):
    """Help for a class ends when the student's running accuracy on it reaches a share of the teacher's.

    Args:
        stop_at: that share.
        momentum: of the running accuracies, per visit of the class.
        options: of `DiSKTask`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        stop_at: float = 0.5,
        momentum: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__(student, teacher, **options)
        self.stop_at, self.momentum = stop_at, momentum
        classes = student.get_classifier().out_features  # type: ignore[operator]
        self.register_buffer("accuracies", torch.zeros(2, classes, device=self.device))

    def adjust_help(self, helper_B: Tensor, logits_BC: Tensor, target: Tensor, teacher: Mapping[str, Tensor]) -> Tensor:
        student_C, teacher_C = snapshot(self.accuracies)
        learned_C = student_C >= self.stop_at * teacher_C.clamp(min=1e-3)
        helper_B = helper_B * ~learned_C[target]
        if self.training:
            counts_C = torch.bincount(target, minlength=len(student_C))
            for row_C, outputs_BC in zip(self.accuracies, (logits_BC, teacher["logits"]), strict=True):
                hits_C = torch.zeros_like(row_C).index_add_(0, target, (outputs_BC.argmax(1) == target).float())
                keep_C = self.momentum**counts_C
                row_C.copy_(keep_C * row_C + (1 - keep_C) * hits_C / counts_C.clamp(min=1))
        return helper_B


class RelationTask(LogitTask):
    """Help in other geometries than mixing probabilities under the divergence of Kullback and Leibler.

    "correlation": 1 - cos of what is left of t and s when each group's mean is taken out of it: what the best affine
    help, one level for each group of classes, cannot repair in the mean square. Groups: all classes together (then this
    is DIST's relation between classes), or the support M and the rest.
    "mixture": min over b in [0, 1] of |t - ((1 - b) s + b U)|^2 / |t - U|^2, U uniform over all classes.
    "affine": the same with any factor >= 0 in the place of 1 - b: help that sharpens too; 1 - correlation^2.
    "brier": the same without help.
    "power": min over a of KL(t || softmax(a s)): help that flattens or sharpens.

    Args:
        kind: which of them.
        temperature: T of both models before it.
        relation_weight: of the loss, times T^2.
        top_k: K of M, the teacher's top K and the label; null: one group.
        price: mu of help in "affine": mu (1 - a)^2 |s - U|^2 is added, which leaves (affine + mu brier) / (1 + mu).
        intra_weight: of the same relation among a class's images, DIST's, beside the weight 1 of the other.
        ce_weight: of the labels.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        kind: str = "correlation",
        temperature: float = 4.0,
        relation_weight: float = 4.0,
        top_k: int | None = None,
        price: float = 0.0,
        intra_weight: float = 0.0,
        ce_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, name="relation", weight=relation_weight, ce_weight=ce_weight)
        self.kind, self.temperature, self.top_k, self.intra_weight = kind, temperature, top_k, intra_weight
        self.price = price

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C) and class indices (B,)."""
        log_s_BC = log_probabilities(student, self.temperature)
        t_BC = log_probabilities(teacher.detach(), self.temperature).exp()
        return self.temperature**2 * getattr(self, f"_{self.kind}")(log_s_BC, t_BC, target)

    def _correlation(self, log_s_BC: Tensor, t_BC: Tensor, target: Tensor) -> Tensor:
        s_BC = log_s_BC.exp()
        inside_BC = torch.zeros_like(t_BC)
        if self.top_k is not None:
            inside_BC.scatter_(1, t_BC.topk(self.top_k, 1).indices, 1.0).scatter_(1, target[:, None], 1.0)
        rest = [_residual(x_BC, inside_BC) for x_BC in (s_BC, t_BC)]
        loss = 1 - torch.cosine_similarity(*rest, dim=1, eps=1e-8).mean()
        if self.intra_weight:
            columns = [x_BC - x_BC.mean(0) for x_BC in (s_BC, t_BC)]
            loss = loss + self.intra_weight * (1 - torch.cosine_similarity(*columns, dim=0, eps=1e-8).mean())
        return loss

    def _affine(self, log_s_BC: Tensor, t_BC: Tensor, target: Tensor) -> Tensor:
        free = self._mixture(log_s_BC, t_BC, target, most=math.inf)
        return (free + self.price * self._brier(log_s_BC, t_BC, target)) / (1 + self.price) if self.price else free

    def _brier(self, log_s_BC: Tensor, t_BC: Tensor, target: Tensor) -> Tensor:
        return ((t_BC - log_s_BC.exp()).square().sum(1) / (t_BC - 1 / t_BC.shape[1]).square().sum(1)).mean()

    def _mixture(self, log_s_BC: Tensor, t_BC: Tensor, target: Tensor, most: float = 1.0) -> Tensor:
        s_BC, t_BC = log_s_BC.exp() - 1 / log_s_BC.shape[1], t_BC - 1 / t_BC.shape[1]
        with torch.no_grad():
            share_B1 = ((s_BC * t_BC).sum(1, True) / s_BC.square().sum(1, True).clamp(min=1e-12)).clamp(0, most)
        return ((t_BC - share_B1 * s_BC).square().sum(1) / t_BC.square().sum(1)).mean()

    def _power(self, log_s_BC: Tensor, t_BC: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            low_B1 = log_s_BC.new_full((len(log_s_BC), 1), -3.0)
            high_B1 = -low_B1
            wanted_B1 = (t_BC * log_s_BC).sum(1, True)
            for _ in range(20):
                middle_B1 = (low_B1 + high_B1) / 2
                excess_B1 = ((middle_B1.exp() * log_s_BC).softmax(1) * log_s_BC).sum(1, True) - wanted_B1
                low_B1 = torch.where(excess_B1 < 0, middle_B1, low_B1)
                high_B1 = torch.where(excess_B1 < 0, high_B1, middle_B1)
            power_B1 = ((low_B1 + high_B1) / 2).exp()
        log_q_BC = (power_B1 * log_s_BC).log_softmax(1)
        # By the power, so that a flat student's gradients are no larger than a sharp one's.
        return ((t_BC * (t_BC.log() - log_q_BC)).sum(1) / power_B1.squeeze(1)).mean()


def _residual(x_BC: Tensor, inside_BC: Tensor) -> Tensor:
    """What is left when the means inside and outside are taken out."""
    means = [(x_BC * w_BC).sum(1, True) / w_BC.sum(1, True).clamp(min=1) * w_BC for w_BC in (inside_BC, 1 - inside_BC)]
    return x_BC - means[0] - means[1]


class LateDiSK(DiSKTask):
    """Help late: none, and no move of the price, before the epoch `late_from`."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, late_from: float = 12.0, **options: Any) -> None:
        super().__init__(student, teacher, **options)
        self.late_from = late_from

    def _late(self) -> Tensor:
        return snapshot(self.step) / self.steps_per_epoch >= self.late_from

    def adjust_help(self, helper_B: Tensor, logits_BC: Tensor, target: Tensor, teacher: Mapping[str, Tensor]) -> Tensor:
        return helper_B * self._late()

    @torch.no_grad()
    def update_price(self, used: Tensor, budget: Tensor) -> None:
        super().update_price(torch.where(self._late(), used, budget), budget)


class LateGCE(GCETask):
    """Generalised cross-entropy from the epoch `late_from` on, KL before: the bounded control for late help."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        late_from: float = 12.0,
        late_weight: float = 1.0,
        temperature: float = 1.0,
        ce_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(student, teacher, temperature=temperature, ce_weight=ce_weight, **options)
        self.late_from, self.late_weight, self.temperature = late_from, late_weight, temperature

    def distillation(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C)."""
        late = snapshot(self.step) / self.steps_per_epoch >= self.late_from
        log_s_BC = log_probabilities(student, self.temperature)
        t_BC = log_probabilities(teacher.detach(), self.temperature).exp()
        early = -(t_BC * log_s_BC).sum(1).mean() * self.temperature**2
        return torch.where(late, self.late_weight * super().distillation(student, teacher, target), early)
