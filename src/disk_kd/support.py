"""Shared functions of losses, helpers and tasks: the support, safe logarithms, random bits, checks of arguments.

Legend: B batch, C classes, K the teacher's top classes, M = K + 1 columns (the top K, then the label).

Checks read shapes and Python numbers. They do not read values of tensors on an accelerator, because the host would
then wait in each step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError, DataError

# The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014),
# in int64 that wraps as uint64 does: hence the negative constants.
GAMMA = -0x61C8864680B583EB
_FACTOR_1 = -0x40A7B892E31B1A47
_FACTOR_2 = -0x6B2FB644ECCEEE15


def support(
    teacher_logits_BC: Tensor,
    targets: Tensor,
    top_k: int,
    *,
    mass: float = 1.0,
    temperature: float = 1.0,
    outside_BC: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lists the classes that may be helped: some of the teacher's, or all outside the student's, and the label.

    For a mixed image both labels belong to it: the two largest shares above the row's smallest, which label smoothing
    gives to all classes. Ties of logits are broken as in `torch.topk`.

    Args:
        teacher_logits_BC: (B, C).
        targets: (B,) int64 class indices, or (B, C) label probabilities of mixed images.
        top_k: K, from 0 to C; 0: the label alone.
        mass: keep only the first of the teacher's top K whose probabilities at `temperature` reach this sum, above 0;
            1: all K.
        temperature: T_t > 0.
        outside_BC: student logits (B, C): the classes outside *their* top K replace the teacher's top K.

    Returns:
        index_BM: (B, M) class indices, all of the support; the last column is the label, which also stands in the
            place of classes beyond `mass`; with shares the last two are the larger and the smaller label. M is K + 1
            (K + 2 with shares), or C - K + 1 with `outside_BC`.
        member_BM: (B, M) bool; True once for each class of the support, so that ``member_BM.sum(1)`` is its size.

    Raises:
        ConfigError: `top_k` is outside 0..C, `mass` outside (0, 1], or below 1 with `outside_BC`.
    """
    classes = teacher_logits_BC.shape[1]
    if not 0 <= top_k <= classes:
        raise ConfigError(f"top_k must be from 0 to the {classes} classes, got {top_k}; lower or raise top_k")
    if not 0 < mass <= 1:
        raise ConfigError(f"the support's mass must be above 0 and at most 1, got {mass}; try 0.9")
    if outside_BC is not None and mass < 1:
        raise ConfigError("mass applies to the teacher's top K, not to a support outside the student's; give mass 1")
    if outside_BC is not None:
        listed_BM = outside_BC.detach().topk(classes - top_k, dim=1, largest=False, sorted=False).indices
    else:
        listed_BM = teacher_logits_BC.detach().topk(top_k, dim=1, sorted=mass < 1).indices
    labels_BL, labelled_BL = _labels(targets)
    member_BM = torch.ones_like(listed_BM, dtype=torch.bool)
    if mass < 1:
        t_BM = log_probabilities(teacher_logits_BC.detach(), temperature).exp().gather(1, listed_BM)
        member_BM = t_BM.cumsum(1) - t_BM < mass
        listed_BM = torch.where(member_BM, listed_BM, labels_BL[:, :1])
    listed_BML = (listed_BM[:, :, None] == labels_BL[:, None, :]) & member_BM[:, :, None]
    new_BL = labelled_BL & ~listed_BML.any(1)
    return torch.cat([listed_BM, labels_BL], dim=1), torch.cat([member_BM, new_BL], dim=1)


def _labels(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Class indices (B, 1), or (B, 2) for label probabilities, and which of them are labels. The first always is."""
    if targets.dim() == 1:
        return targets[:, None], torch.ones_like(targets[:, None], dtype=torch.bool)
    shares_BL, labels_BL = targets.topk(min(2, targets.shape[1]), dim=1)
    first_B1 = labels_BL[:, :1]
    # Entries without a second label repeat the first, so that the columns name no class outside the support.
    labelled_BL = (shares_BL > targets.amin(1, keepdim=True)) & (labels_BL != first_B1)
    return torch.where(labelled_BL, labels_BL, first_B1), labelled_BL | (labels_BL == first_B1)


def at_least_float32(x: Tensor) -> Tensor:
    """Casts half precision (and integers) to float32. float32 and float64 stay the same."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_probabilities(logits_BC: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) over the classes, in float32 at least. (B, C) -> (B, C)."""
    return torch.log_softmax(at_least_float32(logits_BC) / temperature, dim=1)


def sample_name(split: Any, number: int) -> str:
    """A sample for messages: its number in the original split, and its path if it is a file.

    Args:
        split: it has `ids` (N,), and perhaps `paths`.
        number: one of the ids.
    """
    paths = getattr(split, "paths", None)
    if not paths:
        return f"sample {number}"
    return f"sample {number} ({paths[int((split.ids == number).nonzero()[0])]})"


UNLABELLED = -100
"""The label of an image that has none, as in PyTorch's losses."""

LOWEST = -1e30
"""Takes the place of a logit of minus infinity: its probability is zero as well, and zero times it is no NaN."""


def teacher_log_probabilities(logits_BC: Tensor, temperature: float) -> Tensor:
    """`log_probabilities` without gradient. Classes masked with logits of minus infinity stay finite."""
    logits_BC = at_least_float32(logits_BC.detach())
    return log_probabilities(logits_BC.clamp(min=LOWEST), temperature)


def label_loss(
    logits_BC: Tensor,
    targets: Tensor,
    label_smoothing: float,
    labelled_share: Tensor | None = None,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the labelled images, a scalar in float32 at least; 0 if no image has a label.

    mean_i w_(y_i) cross_entropy(s_i, y_i); for label probabilities p: mean_i sum_c p_ic w_c cross_entropy(s_i, c)

    The mean is over images, whatever their weights are, so that the loss of a batch is the mean of its parts.

    Args:
        logits_BC: (B, C).
        targets: (B,) class indices, with `UNLABELLED` for none; or (B, C) label probabilities.
        label_smoothing: mass moved from the label to the uniform distribution, in [0, 1).
        labelled_share: share of labelled images in the whole batch of which these images are a part, a 0-dim tensor.
            Then the mean over all parts is the mean over the labelled images of the batch, wherever they are. None:
            these images are the batch.
        class_weights_C: (C,) w, the weight of each class; None: all are 1.
    """
    if class_weights_C is not None and targets.is_floating_point():
        targets = targets * class_weights_C
        targets = (1 - label_smoothing) * targets + label_smoothing * targets.mean(1, keepdim=True)
        return F.cross_entropy(logits_BC.float(), targets)
    if targets.is_floating_point() or (labelled_share is None and class_weights_C is None):
        ce = F.cross_entropy(logits_BC.float(), targets, label_smoothing=label_smoothing)
        return ce if targets.is_floating_point() else torch.where((targets == UNLABELLED).all(), 0.0, ce)
    ce_B = F.cross_entropy(logits_BC.float(), targets, label_smoothing=label_smoothing, reduction="none")
    if class_weights_C is not None:
        ce_B = ce_B * class_weights_C[targets.clamp(min=0)]
    if labelled_share is None:
        labelled_share = (targets != UNLABELLED).to(ce_B.dtype).mean()
    return ce_B.mean() / torch.where(labelled_share > 0, labelled_share, math.inf)


def with_teacher_class(targets: Tensor, teacher_logits_BC: Tensor) -> Tensor:
    """Class indices (B,) with the teacher's first class in the place of `UNLABELLED`. Label probabilities stay."""
    if targets.is_floating_point():
        return targets
    return torch.where(targets == UNLABELLED, teacher_logits_BC.detach().argmax(1), targets)


def label_cross_entropy(logits_BC: Tensor, targets: Tensor) -> Tensor:
    """(B,) cross-entropies in nats against class indices (B,) or label probabilities (B, C)."""
    targets = targets.to(logits_BC.dtype) if targets.is_floating_point() else targets
    return F.cross_entropy(logits_BC, targets, reduction="none")


def log_add_helper(log_s_BM: Tensor, helper_B: Tensor) -> Tensor:
    """log(s + g) from log s and g in [0, 1], with finite gradients also where s underflows and g = 0.

    The larger of log s and log g is taken out first. The gradient in g is 1 / (s + g), held below the
    square root of the largest number, so that its norm over a batch is finite too.

    Args:
        log_s_BM: (B, M), finite.
        helper_B: (B,).
    """
    helper_B1 = helper_B[:, None]
    largest_BM = torch.maximum(log_s_BM, helper_B1.log()).detach()
    scale_BM = torch.exp(-largest_BM).clamp(max=math.sqrt(torch.finfo(log_s_BM.dtype).max))
    return largest_BM + torch.log(torch.exp(log_s_BM - largest_BM) + helper_B1 * scale_BM)


def other_classes(x_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Each row without its label's column, in class order. (B, C) -> (B, C - 1). ConfigError where C is 1."""
    classes = x_BC.shape[1]
    if classes < 2:
        raise ConfigError(f"a label needs other classes, got {classes} class; give at least 2 classes")
    index_R = torch.arange(classes - 1, device=x_BC.device)
    return x_BC.gather(1, index_R + (index_R >= targets_B[:, None]))


def mix(x: Tensor) -> Tensor:
    """64 random-looking bits for each int64. Inputs at steps of `GAMMA` make it a random generator."""
    x = (x ^ shift_right(x, 30)) * _FACTOR_1
    x = (x ^ shift_right(x, 27)) * _FACTOR_2
    return x ^ shift_right(x, 31)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift. torch's `>>` on int64 copies the sign bit; a mask removes it."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


# An operator of its own, since a plain clone is not enough: compiled code may drop the clone and read the buffer again
# in the backward pass, after the change, and the gradients are silently wrong (pytorch/pytorch#197039). It does not
# recompute operators that it does not know.
@torch.library.custom_op("disk_kd::snapshot", mutates_args=())
def snapshot(buffer: Tensor) -> Tensor:
    """A copy of a buffer that the same forward pass changes later. It keeps its value, also in compiled code.

    No gradient flows through it.
    """
    return buffer.clone()


@snapshot.register_fake
def _(buffer: Tensor) -> Tensor:
    return torch.empty_like(buffer)


def check_temperature(value: float, name: str = "temperature", usual: float = 1.0) -> None:
    """Raises ConfigError unless a temperature is finite and above zero."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} must be finite and above 0, got {value}; try {usual}")


def check_temperatures(student_temperature: float, teacher_temperature: float) -> None:
    """Raises ConfigError unless both temperatures are finite and above zero."""
    check_temperature(student_temperature, "student_temperature")
    check_temperature(teacher_temperature, "teacher_temperature")


def check_batch(what: str, images: int, least: int) -> None:
    """Raises ConfigError if the batch has fewer images than `what` needs."""
    if images < least:
        raise ConfigError(
            f"{what} needs a batch of at least {least} images, got {images}; raise the batch size, or accumulate less"
        )


def check_shapes(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor | None = None,
    helper: Tensor | None = None,
    *,
    shares: bool = False,
) -> None:
    """Raises ConfigError unless both logits are (B, C), targets are (B,) integers and helper is (B,).

    Raises DataError for labels that `check_range` refuses. With `shares`, targets may also be (B, C) floats: the
    classes' shares in mixed images.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ConfigError(
            f"student and teacher logits must have one shape (batch, classes), got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}; match the classes of the models"
        )
    batch = student_logits.shape[:1]
    mixed = shares and targets is not None and targets.is_floating_point() and targets.shape == student_logits.shape
    if targets is not None and not mixed and (targets.shape != batch or targets.dtype != torch.int64):
        raise ConfigError(
            f"targets must be int64 class indices of shape {tuple(batch)}, got {targets.dtype} of shape "
            f"{tuple(targets.shape)}; give one class per image"
        )
    if targets is not None and not mixed:
        check_range(targets, student_logits.shape[1])
    if helper is not None and helper.shape != batch:
        raise ConfigError(f"helper must have shape {tuple(batch)}, got {tuple(helper.shape)}; give one value per image")


def check_range(labels: Tensor, classes: int, *, what: str = "labels", unlabelled: bool = False) -> None:
    """Raises DataError for labels outside 0 … classes - 1.

    It checks only labels on the CPU, and not in compiled code, because reading labels on an accelerator makes the host
    wait.

    Args:
        labels: integers of any shape.
        classes: number of classes.
        what: name of the labels, for the message.
        unlabelled: whether `UNLABELLED` is allowed too.
    """
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        require_range(labels, classes, what=what, unlabelled=unlabelled)


def require_range(labels: Tensor, classes: int, *, what: str = "labels", unlabelled: bool = False) -> None:
    """`check_range` on any device. The host waits for the device."""
    given = labels[labels != UNLABELLED] if unlabelled else labels
    if not given.numel():
        return
    low, high = (int(end) for end in given.aminmax())
    if low < 0 or high >= classes:
        none = f", or {UNLABELLED} for an image without one" if unlabelled else ""
        advice = "give each image one" if low == UNLABELLED else "count them from 0"
        raise DataError(f"{what} are expected in 0 … {classes - 1}{none}, got {low} … {high}; {advice}")


def check_targets(targets: Tensor, images: int, classes: int | None) -> None:
    """Raises DataError unless targets are (B,) integers or (B, C) shares of the classes.

    Args:
        targets: targets of a batch.
        images: B.
        classes: C; None: unknown.
    """
    if targets.is_floating_point():
        fits = targets.dim() == 2 and len(targets) == images and classes in (None, targets.shape[1])
    else:
        fits = targets.shape == (images,)
    if not fits:
        raise DataError(
            f"targets must be integer class indices of shape {(images,)}, or shares of the classes of shape ({images},"
            f" {classes or 'classes'}), got {targets.dtype} of shape {tuple(targets.shape)}; give one class per image"
        )
