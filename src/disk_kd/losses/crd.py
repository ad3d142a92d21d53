"""Contrastive representation distillation.

Legend: B batch, F features, N samples, K negatives, D dimensions of the embedding; a leading 2 is the student's
and the teacher's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.support import GAMMA, check_range, check_temperature, mix, snapshot


class ContrastiveLoss(nn.Module):
    """Contrastive loss: each image's two embeddings are told apart from those of K images of other classes.

    Formula: ``-(1/B) sum_i [ log h(a_i, b_i) + sum_k log(1 - h(a_i, b_ik)) ]``, once with the student's embedding as
    a and the teacher's as b, once the other way round, and both added. b comes from a memory of all samples;
    b_ik is that of sample i's k-th negative.
    ``h(a, b) = P / (P + K/N)``, ``P = exp(<a, b> / temperature) / Z``; Z is N times the mean of the exponentials in
    the first training batch, one for each direction. Embeddings are linear in the features, then of L2 norm one.
    After a training batch, ``memory_i <- normalised(momentum memory_i + (1 - momentum) embedding_i)``.

    Both embeddings are trained with the student. Other state (memory, Z, the number of batches) is in
    buffers, and the negatives are a function of seed, batches so far, sample and k: a run resumed from its state
    draws what one never stopped would have drawn. In eval mode nothing changes.

    Args:
        student_features: F of the student.
        teacher_features: F of the teacher.
        labels: (N,) int64, the class of each sample by its id. Samples of class -1, such as those held out for
            validation, are never drawn and do not count in N.
        dimensions: D.
        negatives: K.
        temperature: above 0.
        momentum: from 0 up to, not including, 1.
        seed: seed of the memory's first values and of the negatives.

    Called with:
        student_features: (B, F).
        teacher_features: (B, F); no gradient flows into them.
        targets: (B,) int64, the samples' classes, as in `labels`.
        ids: (B,) int64, which samples they are; each at most once.

    Returns:
        A scalar: the mean over the batch, the sum over negatives and directions. In float32 at least.

    Raises:
        ConfigError: a setting is not valid, `labels` has no two classes, or shapes differ from those above.
        DataError: targets or ids on the CPU lie outside `labels`.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, the critic h of section 3;
    Z, both directions and negatives from other classes as in the experiments' benchmark.
    Departs: negatives are drawn with replacement, which the theory assumes, where the benchmark draws without if it
    can; P and K/N are compared in log space, so no small constant is added.

    Costs 2 B N D multiply-adds forward, and room for 2 B N + 4 N D numbers: all similarities are computed, then the
    drawn ones picked, which takes less than to gather 2 B K D numbers of the memory while N < K D. For one process:
    on several, each would remember its own share of the samples only.

    Example:
        >>> loss = ContrastiveLoss(16, 32, torch.arange(100) % 10, negatives=20, seed=0)
        >>> student, teacher, ids = torch.randn(4, 16, requires_grad=True), torch.randn(4, 32), torch.arange(4)
        >>> loss(student, teacher, ids % 10, ids).backward()
    """

    memory: Tensor
    log_z: Tensor
    batches: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor
    jumps: Tensor

    def __init__(
        self,
        student_features: int,
        teacher_features: int,
        labels: Tensor,
        *,
        dimensions: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int,
    ) -> None:
        super().__init__()
        _check_settings(dimensions, negatives, temperature, momentum)
        order_N, starts_C, counts_C = _by_class(labels)
        self.widths = student_features, teacher_features
        self.embed_student = nn.Linear(student_features, dimensions)
        self.embed_teacher = nn.Linear(teacher_features, dimensions)
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.seed = seed
        self.samples = len(order_N)
        memory_2ND = torch.randn(2, len(labels), dimensions, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("memory", F.normalize(memory_2ND, dim=2))
        self.register_buffer("log_z", torch.full((2,), math.inf))  # not estimated yet
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        # Made here, not when drawing: compiled there, the product becomes an index of a C++ loop whose overflow is
        # undefined, and the loop runs past its array.
        jumps_K = torch.arange(1, negatives + 1) * GAMMA
        for name, value in (("order", order_N), ("starts", starts_C), ("counts", counts_C), ("jumps", jumps_K)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, student_features: Tensor, teacher_features: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        _check_batch(student_features, teacher_features, targets, ids, self.widths)
        check_range(targets, len(self.counts))
        check_range(ids, self.memory.shape[1], what="ids")
        # Half precision would be off by 5% in exp(x / 0.07).
        with torch.autocast(student_features.device.type, enabled=False):
            embedded_2BD = self._embed(student_features, teacher_features.detach())
            rows_BK1 = torch.cat([ids[:, None], self.draw_negatives(targets, ids)], dim=1)
            logits_2BK1 = self._logits(embedded_2BD, rows_BK1)
            loss = -F.logsigmoid(logits_2BK1[..., 0]).sum() - F.logsigmoid(-logits_2BK1[..., 1:]).sum()
            if self.training:
                self._remember(embedded_2BD.detach(), ids)
        return loss / len(ids)

    def draw_negatives(self, targets_B: Tensor, ids_B: Tensor) -> Tensor:
        """The negatives of the next batch: (B, K) ids, uniform over the samples of other classes."""
        state = mix(mix(torch.full_like(self.batches, self.seed)) + snapshot(self.batches))
        state_B1 = mix(state + (ids_B + 1) * GAMMA)[:, None]
        bits_BK = mix(state_B1 + self.jumps)
        start_B1, count_B1 = self.starts[targets_B][:, None], self.counts[targets_B][:, None]
        # The own class is one stretch of the order, which the draw leaps over.
        place_BK = bits_BK % (self.samples - count_B1)
        return self.order[place_BK + (place_BK >= start_B1) * count_B1]

    def _embed(self, student_BF: Tensor, teacher_BF: Tensor) -> Tensor:
        dtype = self.embed_student.weight.dtype
        embedded = self.embed_student(student_BF.to(dtype)), self.embed_teacher(teacher_BF.to(dtype))
        return F.normalize(torch.stack(embedded), dim=2)

    def _logits(self, embedded_2BD: Tensor, rows_BK1: Tensor) -> Tensor:
        """log P - log(K/N) of each memory at `rows_BK1` and the other network's embedding: (2, B, K + 1)."""
        # The backward pass needs the memory as it was before this batch was remembered.
        similarity_2BN = embedded_2BD.flip(0) @ snapshot(self.memory).transpose(1, 2)
        scaled_2BK1 = similarity_2BN.gather(2, rows_BK1.expand(2, -1, -1)) / self.temperature
        log_z_2 = self._log_z(scaled_2BK1.detach())
        return scaled_2BK1 - log_z_2[:, None, None] - math.log(self.negatives / self.samples)

    def _log_z(self, scaled_2BK1: Tensor) -> Tensor:
        """log Z of both directions: as kept, or from this batch, and then kept if it is for training."""
        mean_2 = scaled_2BK1.flatten(1).logsumexp(1) - math.log(scaled_2BK1[0].numel())
        kept_2 = snapshot(self.log_z)
        log_z_2 = torch.where(kept_2.isfinite(), kept_2, mean_2 + math.log(self.samples))
        if self.training:
            self.log_z.copy_(log_z_2)
        return log_z_2

    def _remember(self, embedded_2BD: Tensor, ids_B: Tensor) -> None:
        mixed_2BD = torch.lerp(embedded_2BD, self.memory[:, ids_B], self.momentum)
        self.memory.index_copy_(1, ids_B, F.normalize(mixed_2BD, dim=2))
        self.batches += 1


def _by_class(labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ids of samples with a class, ordered by class; where each class starts in that order; its size."""
    if labels_N.dim() != 1 or labels_N.dtype != torch.int64:
        raise ConfigError(
            f"labels must be int64 class indices of shape (samples,), got {labels_N.dtype} of shape "
            f"{tuple(labels_N.shape)}; give one class per sample, -1 for none"
        )
    with_class_N = labels_N[labels_N >= 0]
    counts_C = with_class_N.bincount()
    if int((counts_C > 0).sum()) < 2:
        raise ConfigError("labels must hold at least 2 classes to draw negatives from the others; give all samples'")
    order_N = labels_N.argsort(stable=True)[len(labels_N) - len(with_class_N) :]
    return order_N, counts_C.cumsum(0) - counts_C, counts_C


def _check_settings(dimensions: int, negatives: int, temperature: float, momentum: float) -> None:
    if dimensions < 1 or negatives < 1:
        raise ConfigError(f"dimensions and negatives must be at least 1, got {dimensions} and {negatives}; raise them")
    check_temperature(temperature, usual=0.07)
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum must be at least 0 and below 1, got {momentum}; try 0.5")


def _check_batch(
    student_BF: Tensor, teacher_BF: Tensor, targets_B: Tensor, ids_B: Tensor, widths: tuple[int, int]
) -> None:
    for name, features_BF, width in zip(("student", "teacher"), (student_BF, teacher_BF), widths, strict=True):
        if features_BF.shape != (len(ids_B), width):
            raise ConfigError(
                f"{name} features must have shape (batch, features) = {(len(ids_B), width)}, got "
                f"{tuple(features_BF.shape)}; give pooled features, one row per id"
            )
    for name, index_B in (("targets", targets_B), ("ids", ids_B)):
        if index_B.shape != ids_B.shape[:1] or index_B.dtype != torch.int64:
            raise ConfigError(
                f"{name} must be int64 of shape {(len(ids_B),)}, got {index_B.dtype} of shape "
                f"{tuple(index_B.shape)}; give one per image"
            )
