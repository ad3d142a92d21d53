"""Multi-level logit distillation. Legend: B batch, C classes, T temperatures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import check_shapes, check_temperature, log_probabilities, teacher_log_probabilities


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    instance_weight: float,
    batch_weight: float,
    class_weight: float,
    temperatures: Sequence[float],
) -> Tensor:
    """Divergences at three levels: predictions of each image, relations of images, and relations of classes.

    Formula: ``sum_T ( w_instance T^2 mean_i KL( t_i || s_i ) + w_batch || S S^T - R R^T ||^2 / B
    + w_class || S^T S - R^T R ||^2 / C )``, where S and R are the (B, C) matrices softmax(student / T) and
    softmax(teacher / T), s_i and t_i their rows, and || ||^2 is the sum of squared entries. An entry of S S^T says
    how alike two images are, one of S^T S how often two classes are likely together.

    With batch and class weight 0 and one temperature it is `kd_loss`. The release's temperatures are 2, 3, 4, 5 and 6,
    its weights equal; the cross-entropy with the label is not part of it.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        instance_weight: w_instance, on the predictions of each image.
        batch_weight: w_batch, on the relations among the images of this batch.
        class_weight: w_class, on the relations among the classes in this batch.
        temperatures: each T > 0, for student and teacher; at least one.

    Returns:
        A scalar. In float32 at least, also under autocast.

    Raises:
        ConfigError: shapes differ; no temperature is given, or one is not finite and above 0.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, the alignments at the level of instance,
    batch and class, over the temperatures of its prediction augmentation.
    Departs: T^2 on the divergence follows the release. Three things of the release are not followed. It multiplies
    means over the batch by the share of images, or classes, of which the teacher is less sure than the median,
    which is a constant of about a half. It sees each image twice, weakly and strongly augmented; here a batch holds
    one view of each. Some of its strong terms read the weak logits.

    The sum over temperatures acts like a larger learning rate: the release halves that of the benchmark.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> weights = {"instance_weight": 1.0, "batch_weight": 1.0, "class_weight": 1.0}
        >>> mlkd_loss(student, teacher, **weights, temperatures=[2.0, 4.0]).backward()
    """
    check_shapes(student_logits, teacher_logits)
    if not temperatures:
        raise ConfigError("temperatures must hold at least one number, got none; try [2, 3, 4, 5, 6]")
    total = torch.zeros((), device=student_logits.device)
    # Autocast would do the products in half precision.
    with torch.autocast(student_logits.device.type, enabled=False):
        for temperature in temperatures:
            check_temperature(temperature, "each of the temperatures", usual=4.0)
            log_s_BC = log_probabilities(student_logits, temperature)
            log_t_BC = teacher_log_probabilities(teacher_logits, temperature)
            kl = F.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True)
            s_BC, t_BC = log_s_BC.exp(), log_t_BC.exp()
            images = _gram_distance(s_BC, t_BC)
            classes = _gram_distance(s_BC.T, t_BC.T)
            total = total + instance_weight * temperature**2 * kl + batch_weight * images + class_weight * classes
    return total


def _gram_distance(a_RN: Tensor, b_RN: Tensor) -> Tensor:
    """The squared difference of the inner products among R rows of N numbers, summed, for each row on average."""
    return (a_RN @ a_RN.T - b_RN @ b_RN.T).square().sum() / len(a_RN)
