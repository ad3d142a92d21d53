"""The classifier of a probe: multinomial logistic regression on standardised features.

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from disk_kd.training.selection import selection_margin

DEFAULT_C = 0.01
"""C without a validation split."""
_ITERATIONS = 1000


@dataclass(frozen=True)
class FittedProbe:
    """A linear classifier of plain features.

    Attributes:
        weight_KD, bias_K: float32; logits = features weight^T + bias.
        c: the chosen C.
        scores: for each C of the grid "C", "top1" (percent) and "nll" (nats) on the validation split, and "converged";
            without a validation split "C" and "converged" alone.
    """

    weight_KD: Tensor
    bias_K: Tensor
    c: float
    scores: list[dict[str, Any]]


def fit_probe(
    features_ND: Tensor, labels_N: Tensor, validation: tuple[Tensor, Tensor] | None, grid: Sequence[float], classes: int
) -> FittedProbe:
    """Fit a multinomial logistic regression.

        minimise over W, b:  C sum_i w_i cross_entropy(W z_i + b, y_i) + |W|^2 / 2,   z = (f - mean) / deviation

    Each feature f is standardised by its mean and standard deviation over the training samples, so that one C suits
    features of different scales. The sample weights w_i are all 1. Mean and deviation are then folded into the result:
    logits = W (f - mean) / deviation + b = W' f + b'. A feature that never changes gets the weight 0.

    Args:
        features_ND: training features.
        labels_N: their labels, each class at least once.
        validation: features and labels of the validation split, on which C is chosen (`chosen`). None: the grid has one
            C.
        grid: values of C.
        classes: K.
    """
    x = features_ND.double()
    mean_D, deviation_D = x.mean(0), x.std(0, correction=0)
    constant_D = deviation_D <= 1e-6 * x.abs().amax(0).clamp(min=torch.finfo(torch.float64).tiny)
    scale_D = torch.where(constant_D, 0.0, 1 / deviation_D.masked_fill(constant_D, 1.0))
    z = ((x - mean_D) * scale_D).float().numpy()
    model = LogisticRegression(solver="lbfgs", max_iter=_ITERATIONS, warm_start=True)
    scores, results = list[dict[str, Any]](), dict[float, tuple[Tensor, Tensor]]()
    for c in sorted(grid):
        model.set_params(C=c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told in the scores
            model.fit(z, labels_N.numpy())
        weight_KD, bias_K = (torch.from_numpy(np.array(part, dtype=np.float64)) for part in _of_classes(model, classes))
        folded = (weight_KD * scale_D).float(), (bias_K - weight_KD @ (mean_D * scale_D)).float()
        score = {"C": c, "converged": bool(max(model.n_iter_) < _ITERATIONS)}
        score |= {} if validation is None else _measured(*folded, *validation)
        scores.append(score)
        results[c] = folded
    c = scores[0]["C"] if validation is None else chosen(scores, len(validation[1]))
    return FittedProbe(*results[c], c, scores)


def chosen(scores: Sequence[Mapping[str, Any]], images: int) -> float:
    """The C with the lowest NLL among those whose accuracy is within one standard error of the highest.

    NLL alone would prefer large C, whose probabilities are well calibrated, over a smaller C with a clearly higher
    accuracy. Accuracy alone has many ties on few images.

    Args:
        scores: "C", "top1" and "nll" on the validation split.
        images: number of images of the validation split.
    """
    best = max(score["top1"] for score in scores)
    near = [score for score in scores if score["top1"] >= best - selection_margin(best, images)]
    return float(min(near, key=lambda score: score["nll"])["C"])


def _of_classes(model: LogisticRegression, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients of every class. For two classes scikit-learn gives those of their difference."""
    if classes > 2:
        return model.coef_, model.intercept_
    return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2


def _measured(weight_KD: Tensor, bias_K: Tensor, features_ND: Tensor, labels_N: Tensor) -> dict[str, float]:
    logits_NK = F.linear(features_ND.float(), weight_KD, bias_K)
    right = (logits_NK.argmax(1) == labels_N).double().mean()
    return {"top1": 100 * float(right), "nll": float(F.cross_entropy(logits_NK, labels_N))}
