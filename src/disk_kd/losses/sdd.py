"""Scale decoupled distillation. Legend: B batch, R regions, the first of which is the whole image, C classes."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import check_temperature, log_probabilities, teacher_log_probabilities


def sdd_loss(student_regions: Tensor, teacher_regions: Tensor, *, beta: float, temperature: float) -> Tensor:
    """KD on the image and on its regions; more on regions that the teacher takes for something else.

    Formula: ``T^2 mean_i sum_r w_ir KL( softmax(t_ir / T) || softmax(s_ir / T) )``, where s_ir and t_ir are the
    logits of region r of image i, and w_ir is 1 where the teacher's likeliest class of the region is that of the whole
    image (a consistent region), else beta (a complementary one).

    With the whole image alone it is `kd_loss`. The paper's beta is 2; its regions are the cells of 1x1 and 2x2 grids
    over the last map, for models of different kinds of a 4x4 grid too. The loss sums over regions, so the paper lets
    its weight rise over 30 epochs. No label is read, and the cross-entropy with it is not part of it.

    Args:
        student_regions: (B, R, C), the logits of each region; region 0 is the whole image.
        teacher_regions: (B, R, C), likewise of the same regions; no gradient flows into them.
        beta: the weight of complementary regions, 0 or more.
        temperature: T > 0, for student and teacher.

    Returns:
        A scalar: the mean over the batch of the sum over regions, times T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ or are others; beta is negative or not finite; the temperature is not finite and
            above 0.

    Source: Wei, Luo, Luo, "Scaled Decoupled Distillation", CVPR 2024, equations 6 to 10, with the divergence of KD
    (its SD-KD).
    Departs: from the release, which divides by the number of regions, where equation 9 sums, and calls a region
    complementary where either it or the image, not both, is classified rightly; the text of the paper compares the
    region's class with the image's.

    Example:
        >>> student, teacher = torch.randn(4, 5, 10, requires_grad=True), torch.randn(4, 5, 10)
        >>> loss = sdd_loss(student, teacher, beta=2.0, temperature=4.0)
        >>> loss.backward()
    """
    if student_regions.dim() != 3 or student_regions.shape != teacher_regions.shape:
        raise ConfigError(
            "logits of regions must have one shape (batch, regions, classes), got "
            f"{tuple(student_regions.shape)} and {tuple(teacher_regions.shape)}; give both models the same scales"
        )
    if not 0 <= beta < math.inf:
        raise ConfigError(f"beta must be a number not below 0, got {beta}; try 2")
    check_temperature(temperature, usual=4.0)
    batch = len(student_regions)
    log_s = log_probabilities(student_regions.flatten(0, 1), temperature)
    log_t = teacher_log_probabilities(teacher_regions.flatten(0, 1), temperature)
    kl_BR = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1).unflatten(0, (batch, -1))
    class_BR = teacher_regions.argmax(2)
    complementary_BR = (class_BR != class_BR[:, :1]).to(kl_BR.dtype)
    return temperature**2 * (kl_BR * (1 + (beta - 1) * complementary_BR)).sum(1).mean()
