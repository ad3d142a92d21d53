"""Distillation of pooled features: direction and length. Legend: B batch, F features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32


def feature_kd_loss(
    student_features: Tensor, teacher_features: Tensor, *, cosine_weight: float, squared_weight: float
) -> Tensor:
    """The angle between the student's and the teacher's pooled features, and their squared error in the teacher's unit.

    Formula: ``w_c mean_i ( 1 - cos(s_i, t_i) ) + w_s mean_if ( s_if - t_if / r )^2``, with ``r^2 = mean_if t_if^2``,
    where i runs over the images of the batch and f over the features. The first term ignores the lengths of the
    features. The second term compares them, in units of the root mean square r of the teacher's features: 0 is perfect,
    and a student that gives zeros has 1. A squared error of unit vectors would be no second term, because
    |s - t|^2 = 2 (1 - cos(s, t)) for them.

    Args:
        student_features: (B, F), projected to the teacher's number of features.
        teacher_features: (B, F), pooled; no gradient flows into them.
        cosine_weight: w_c.
        squared_weight: w_s. 0 leaves the second term out.

    Returns:
        A scalar. In float32 at least, also under autocast. Rows of zeros have cosine 0.

    Raises:
        ConfigError: the features are not (B, F) of one shape.

    Source: the cosine of summary features is equation 2 of Ranzinger, Heinrich, Kautz, Molchanov, "AM-RADIO:
    Agglomerative Vision Foundation Model", CVPR 2024; the squared error of features is that of Romero et al.,
    "FitNets: Hints for Thin Deep Nets", ICLR 2015, section 2.2.
    Departs: the teacher's features are divided by r, so that one weight and one learning rate suit teachers whose
    features have very different scales.

    Example:
        >>> student, teacher = torch.randn(4, 16, requires_grad=True), torch.randn(4, 16)
        >>> loss = feature_kd_loss(student, teacher, cosine_weight=1.0, squared_weight=1.0)
        >>> loss.backward()
    """
    if student_features.dim() != 2 or student_features.shape != teacher_features.shape:
        raise ConfigError(
            f"student and teacher features must be (batch, features) of one shape, got {tuple(student_features.shape)}"
            f" and {tuple(teacher_features.shape)}; project the student's pooled features to the teacher's"
        )
    with torch.autocast(student_features.device.type, enabled=False):
        student_BF, teacher_BF = (at_least_float32(x) for x in (student_features, teacher_features.detach()))
        loss = cosine_weight * (1 - F.cosine_similarity(student_BF, teacher_BF, dim=1)).mean()
        if squared_weight == 0:
            return loss
        unit = teacher_BF.square().mean().sqrt().clamp(min=torch.finfo(teacher_BF.dtype).tiny)
        return loss + squared_weight * F.mse_loss(student_BF, teacher_BF / unit)
