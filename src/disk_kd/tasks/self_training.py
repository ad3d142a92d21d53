"""Self-training by hard labels: the teacher's first class is the label of an image that has none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from disk_kd.support import UNLABELLED, label_loss
from disk_kd.tasks.logit_task import LogitTask, confident


class SelfTrainingTask(LogitTask):
    """Self-training: cross-entropy on the labels, and on the teacher's first class where there is no label.

    loss = ce_weight cross_entropy(s, y) + pseudo_weight mean_u [max softmax(t_u) >= confidence]
    cross_entropy(s_u, argmax t_u)

    u runs over the images of the batch without a label. The mean counts all of them, so that it grows with the share of
    images for which the teacher is certain. It is the baseline that shows what the teacher's probabilities add to its
    decisions. The confidence is an option of the data, `data.unlabelled_confidence` (`count_confident`).

    Sources: Lee, "Pseudo-Label", ICML workshop 2013, with a trained teacher in the place of the student itself; the
    confidence from Sohn et al., "FixMatch", NeurIPS 2020.

    Args:
        student: the model to train.
        teacher: a trained model of the same classes; it is frozen.
        pseudo_weight: Weight of the cross-entropy on the teacher's first class.
        ce_weight: Weight of the cross-entropy on the labels.
        warmup_epochs: Number of student epochs over which `pseudo_weight` rises from 0.
        label_smoothing: Label smoothing of both cross-entropies, in [0, 1).

    Raises:
        ConfigError: a weight or warm-up is negative, or `label_smoothing` is outside [0, 1).
        ModelError: teacher and student differ in their number of classes.
    """

    unlabelled_use = "the teacher's first class is the label of an image without one"
    needs_unlabelled = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        pseudo_weight: float = 1.0,
        ce_weight: float = 1.0,
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            name="pseudo",
            weight=pseudo_weight,
            ce_weight=ce_weight,
            warmup_epochs=warmup_epochs,
            label_smoothing=label_smoothing,
        )
        self.top_logits = 1

    def teacher_part(self, logits: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross-entropy on the teacher's first class, and for the log the share of images with such a label."""
        missing = target == UNLABELLED
        counts = missing & confident(teacher, self.confidence)
        pseudo = torch.where(counts, teacher.detach().argmax(1), UNLABELLED)
        unlabelled = missing.float().mean() if self.labelled_share is None else 1 - self.labelled_share
        loss = label_loss(logits, pseudo, self.label_smoothing, unlabelled)
        return loss, {"counted": counts.float().mean()}
