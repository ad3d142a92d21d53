"""PCA lighting: the colours of each image are shifted along the principal components of ImageNet's colours.

Krizhevsky, Sutskever, Hinton: "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
section 4.1. The shift of channel c is

    sum_j p_cj lambda_j alpha_j,    alpha_j ~ N(0, sigma^2), drawn once an image,

for pixels in [0, 1], with the eigenvectors p_j and eigenvalues lambda_j of the covariance of ImageNet's colours that
AlexNet's re-implementations have in common. Nothing is clipped.

Shapes: B images.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from disk_kd.data.seeds import integers

_LAMBDA = (0.2175, 0.0188, 0.0045)
_P = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Rows are the channels red, green and blue; columns are eigenvectors."""
_QUANTILES = 2**16


@cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """Quantiles of N(0, 1) in the middle of equal shares of its probability, float64 (`_QUANTILES`,), ascending."""
    quantile = NormalDist().inv_cdf
    upper = [quantile((k + 0.5) / _QUANTILES) for k in range(_QUANTILES // 2, _QUANTILES)]
    return torch.tensor([-number for number in reversed(upper)] + upper, dtype=torch.float64, device=device)


def lighting(seeds: Tensor, sigma: float, first_slot: int) -> Tensor:
    """The shift of each image's colours.

    The normal numbers come from a table of 65,536 quantiles, so they do not depend on the rounding of a device. None is
    beyond 4.4 sigma.

    Args:
        seeds: int64 (B,) from `sample_seeds`.
        sigma: standard deviation of alpha; 0.1 in the paper.
        first_slot: first of the three draws from each seed.

    Returns:
        float64 (B, 3), to add to red, green and blue in [0, 1].
    """
    quantiles = _normal_quantiles(seeds.device)
    shift = torch.zeros(len(seeds), 3, dtype=torch.float64, device=seeds.device)
    for j, size in enumerate(_LAMBDA):
        alpha = sigma * quantiles[integers(seeds, first_slot + j, _QUANTILES)]
        shift += alpha[:, None] * torch.tensor([size * p[j] for p in _P], dtype=torch.float64, device=seeds.device)
    return shift
