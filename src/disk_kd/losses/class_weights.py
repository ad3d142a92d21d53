"""Weights of unequal classes in a cross-entropy, and the shift of logit adjustment. Legend: C classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from disk_kd.errors import ConfigError, nearest

_KINDS = ("inverse", "effective")


def class_weights(counts_C: Tensor, kind: Literal["inverse", "effective"], beta: float = 0.999) -> Tensor:
    """The weight of each class, so that rare classes count more.

    Formula: ``w_c = v_c / mean(v)``, with ``v_c = 1 / n_c`` (inverse) or ``v_c = (1 - beta) / (1 - beta^n_c)``
    (effective). The mean is over the classes that have images, so their mean weight is 1.

    The effective number (1 - beta^n) / (1 - beta) of n images is near n for n far below 1 / (1 - beta), and never above
    1 / (1 - beta). beta 0 weighs all classes equally, and beta near 1 weighs as "inverse".

    Args:
        counts_C: (C,) n, the number of labelled images of each class.
        kind: "inverse" or "effective".
        beta: in [0, 1), for "effective".

    Returns:
        float64 (C,). A class without images has weight 0.

    Raises:
        ConfigError: an unknown kind, beta outside [0, 1), or no class has images.

    Source: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    equations 2 and 3, with the weights normalised to a sum of C as in its section 4.

    Example:
        >>> counts_C = torch.tensor([30, 10])
        >>> class_weights(counts_C, "inverse")
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    if kind not in _KINDS:
        raise ConfigError(f"unknown class weights {kind!r}; {nearest(kind, _KINDS)}")
    if not 0 <= beta < 1:
        raise ConfigError(f"beta of class weights must be in [0, 1), not {beta}; try 0.999")
    _check_counts(counts_C)
    counts_C = counts_C.double()
    base = torch.tensor(beta, dtype=torch.float64)
    # expm1 keeps the digits of 1 - beta^n where beta^n is near 1.
    numbers_C = counts_C if kind == "inverse" else -torch.expm1(counts_C * base.log()) / (1 - base)
    values_C = torch.where(counts_C > 0, 1 / numbers_C, 0.0)
    return values_C / values_C[counts_C > 0].mean()


def logit_shift(counts_C: Tensor, tau: float = 1.0) -> Tensor:
    """What logit adjustment adds to the logits in the cross-entropy on the labels.

    Formula: ``tau log(n_c / sum(n))``. The student then learns logits without the frequency of the classes.

    Args:
        counts_C: (C,) n, the number of labelled images of each class.
        tau: strength, above 0; 1 is consistent for the balanced error.

    Returns:
        float64 (C,). A class without images counts as one image, because log 0 is not finite.

    Raises:
        ConfigError: no class has images.

    Source: Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, equation 10.

    Example:
        >>> logit_shift(torch.tensor([3, 1]))
        tensor([-0.2877, -1.3863], dtype=torch.float64)
    """
    _check_counts(counts_C)
    counts_C = counts_C.double()
    return tau * (counts_C.clamp(min=1) / counts_C.sum()).log()


def _check_counts(counts_C: Tensor) -> None:
    if not counts_C.any():
        raise ConfigError("classes are weighed by their labelled images, but there are none; give no class weights")
