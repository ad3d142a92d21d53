"""Logit standardisation, for use before any loss on logits. Legend: B batch, C classes."""

from __future__ import annotations

import math

from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32


def standardise(logits_BC: Tensor, *, eps: float = 1e-7) -> Tensor:
    """The z-scores of each row: subtract its mean, divide by its standard deviation.

    Formula: ``z_c = (x_c - mean x) / sigma``, ``sigma^2 = (1/C) sum_c (x_c - mean x)^2``.

    A loss on z-scores asks the student for the teacher's relations among the classes, not for the size of its
    logits. Standardise student and teacher both, and give the loss the paper's base temperature; for CIFAR-100
    `kd_loss` at T 2 with weight 9. The cross-entropy keeps the plain logits.

    Args:
        logits_BC: (B, C). Gradients flow into them; a loss detaches its teacher.
        eps: the standard deviation, in the logits' units, up to which a row counts as constant, 0 or more.

    Returns:
        (B, C). In float32 at least. A constant row gives zeros, and no gradient flows into it: no z-score is
        defined there, and near there its gradient grows as 1 / sigma.

    Raises:
        ConfigError: the logits are not (B, C), or `eps` is negative or not finite.

    Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1.
    Departs: eps is a threshold. The release adds 1e-7 to sigma, and divides in sigma by C - 1, where the paper and
    this function divide by C: for 100 classes 0.5% apart.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
        >>> z = standardise(logits)
        >>> torch.equal(z[1], torch.zeros(3))
        True
    """
    if logits_BC.dim() != 2:
        raise ConfigError(
            f"logits must have shape (batch, classes), got {tuple(logits_BC.shape)}; flatten or stack them"
        )
    if not 0 <= eps < math.inf:
        raise ConfigError(f"eps must be finite and at least 0, got {eps}; try 1e-7")
    x_BC = at_least_float32(logits_BC)
    # Shifted by one of its own logits a constant row is exactly zero, where its mean alone leaves rounding behind.
    x_BC = x_BC - x_BC[:, :1].detach()
    x_BC = x_BC - x_BC.mean(1, keepdim=True)
    variance_B1 = x_BC.square().mean(1, keepdim=True)
    # 1 / sqrt(inf) is zero, and so is its derivative.
    return x_BC * variance_B1.masked_fill(variance_B1 <= eps**2, math.inf).rsqrt()
