"""How different two classes are for the teacher. Legend: C classes, N images of a class, F features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from disk_kd.errors import ConfigError
from disk_kd.support import at_least_float32


def class_costs(relations_CC: Tensor, *, sharpness: float) -> Tensor:
    """The cost of moving probability from one class to another, for `wkd_loss`.

    Formula: ``c_jk = 1 - exp( -kappa (1 - r_jk) )``: 0 from a class to itself, near 1 between very different classes.

    Args:
        relations_CC: r, (C, C), at most 1: similarity of two classes, from `cka_relations` or `classifier_relations`.
        sharpness: kappa > 0; the paper has 1.

    Returns:
        (C, C), from 0 to 1, without gradient. In float32 at least.

    Raises:
        ConfigError: the relations are not (C, C), or the sharpness is not finite and above 0.

    Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS
    2024, the cost of WKD-L.

    Example:
        >>> relations = classifier_relations(torch.randn(10, 32))
        >>> costs = class_costs(relations, sharpness=1.0)
        >>> float(costs.diagonal().max())
        0.0
    """
    if relations_CC.dim() != 2 or relations_CC.shape[0] != relations_CC.shape[1]:
        raise ConfigError(f"relations must have shape (classes, classes), got {tuple(relations_CC.shape)}")
    if not 0 < sharpness < math.inf:
        raise ConfigError(f"sharpness must be finite and above 0, got {sharpness}; try 1.0")
    relations_CC = at_least_float32(relations_CC.detach()).clamp(max=1)
    return -torch.expm1(-sharpness * (1 - relations_CC))


def classifier_relations(weights_CF: Tensor) -> Tensor:
    """The cosine between the rows of two classes in the teacher's linear classifier.

    Formula: ``r_jk = w_j . w_k / (|w_j| |w_k|)``. It needs no images. In the paper this variant is slightly
    worse than `cka_relations`.

    Args:
        weights_CF: w, (C, F).

    Returns:
        (C, C), from -1 to 1, without gradient. In float32 at least.
    """
    rows_CF = F.normalize(at_least_float32(weights_CF.detach()), dim=1)
    return (rows_CF @ rows_CF.T).fill_diagonal_(1)


def cka_relations(features_CNF: Tensor) -> Tensor:
    """The linear centred kernel alignment of the teacher's features of two classes.

    Formula: ``r_jk = <K_j, K_k> / (|K_j| |K_k|)`` with the sum of products <> and its norm, where
    ``K_j = H X_j X_j^T H`` is the (N, N) matrix of products of class j's features X_j, centred by H = 1 - 1/N.

    The n-th image of one class is paired with the n-th of the other: the order of the images is random, as in the
    paper. With few images all classes look similar: use several times as many images as feature dimensions. A class
    whose features are all equal has similarity 0 to all others.

    Args:
        features_CNF: X, (C, N, F), at least 2 images a class; logits will do.

    Returns:
        (C, C), from 0 to 1, without gradient. In float32 at least.

    Raises:
        ConfigError: the features are not (C, N, F) with N at least 2.

    Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019,
    equation 4; for classes Lv, Yang, Li, NeurIPS 2024.
    """
    if features_CNF.dim() != 3 or features_CNF.shape[1] < 2:
        raise ConfigError(
            f"features must have shape (classes, images, features) with at least 2 images a class, got"
            f" {tuple(features_CNF.shape)}"
        )
    x_CNF = at_least_float32(features_CNF.detach())
    x_CNF = x_CNF - x_CNF.mean(1, keepdim=True)
    return classifier_relations((x_CNF @ x_CNF.mT).flatten(1)).clamp(min=0)
