"""Generalised cross-entropy with soft targets. Legend: B batch, C classes."""

from __future__ import annotations

import torch
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import check_shapes, check_temperature, log_probabilities, teacher_log_probabilities


def gce_loss(student_logits: Tensor, teacher_logits: Tensor, *, power: float, temperature: float) -> Tensor:
    """A bounded cross-entropy of the student with the teacher's probabilities.

    Formula: ``T^2 mean_i sum_c t_ic (1 - s_ic^q) / q`` with s = softmax(s_i / T), t = softmax(t_i / T).

    Towards q = 0 it becomes T^2 times the cross-entropy with t, which has the gradient of `kd_loss`; at q = 1 it is
    half the mean absolute error of s against a class drawn from t. Its gradient is that of the cross-entropy with each
    class weighted by s_c^q: classes that the student finds unlikely, such as a wrong teacher's class, have little
    weight. It is at most T^2 / q. It is not a divergence: it is not zero at student = teacher. For q above 0 its
    minimum is a student more certain than the teacher, with s_c in proportion to t_c^(1 / (1 - q)).

    It reads no labels, so images may have mixed labels or none. The cross-entropy with the label is not part of it.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); no gradient flows into them.
        power: q, above 0 and at most 1.
        temperature: T > 0, for student and teacher.

    Returns:
        A scalar: the mean over the batch times T^2. In float32 at least.

    Raises:
        ConfigError: shapes differ; the power is not above 0 and at most 1; the temperature is not finite and above 0.

    Source: Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    NeurIPS 2018, equation 6.
    Departs: the teacher's probabilities take the place of the label, and there is a temperature. The paper's q for
    labels is 0.7.

    Example:
        >>> student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
        >>> loss = gce_loss(student, teacher, power=0.3, temperature=1.0)
        >>> loss.backward()
    """
    check_shapes(student_logits, teacher_logits)
    check_temperature(temperature)
    check_power(power)
    log_s_BC = log_probabilities(student_logits, temperature)
    t_BC = teacher_log_probabilities(teacher_logits, temperature).exp()
    return temperature**2 * (t_BC * -torch.expm1(power * log_s_BC) / power).sum(1).mean()


def check_power(power: float) -> None:
    """Raises ConfigError unless it is above 0 and at most 1."""
    if not 0 < power <= 1:
        raise ConfigError(f"power must be above 0 and at most 1, got {power}; try 0.3, or KD, which is the limit 0")
