"""Measures beside accuracy: calibration, selective prediction, agreement, confusion, and quality of rankings.

Shape letters: N samples, C classes, M bins of confidence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import Tensor

from disk_kd.metrics import ECE_BINS


class Bin(NamedTuple):
    """Predictions of similar confidence: mean confidence, accuracy, and share of all predictions, as fractions."""

    confidence: float
    accuracy: float
    share: float


def reliability(logits_NC: Tensor, targets_N: Tensor, least: int = 1, bins: int = ECE_BINS) -> list[Bin]:
    """The bins of the ECE with at least `least` samples. Bins have equal width in confidence."""
    confidence_N, guess_N = logits_NC.double().softmax(1).max(1)
    hit_N = (guess_N == targets_N).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    bin_N = torch.bucketize(confidence_N, edges[1:-1])
    found = []
    for index in bin_N.unique().tolist():
        inside_N = bin_N == index
        if int(inside_N.sum()) < least:
            continue
        share = float(inside_N.double().mean())
        found.append(Bin(float(confidence_N[inside_N].mean()), float(hit_N[inside_N].mean()), share))
    return found


def risk_coverage(logits_NC: Tensor, targets_N: Tensor) -> Tensor:
    """Error rate among the n most confident predictions, for n from 1 to N: (N,) float64.

    Its mean is the area under the risk-coverage curve. Source: Geifman, El-Yaniv, "Selective Classification for Deep
    Neural Networks", NeurIPS 2017.
    """
    confidence_N, guess_N = logits_NC.double().softmax(1).max(1)
    order = confidence_N.argsort(descending=True, stable=True)
    wrong_N = (guess_N != targets_N)[order].double()
    return wrong_N.cumsum(0) / torch.arange(1, len(wrong_N) + 1)


class Agreement(NamedTuple):
    """Agreement of a student with its teacher: percentages, and a divergence in nats."""

    same_guess: float
    kl: float
    right_where_teacher_right: float
    right_where_teacher_wrong: float
    same_error: float
    """Share of the teacher's errors that the student repeats with the same class."""


def agreement(student_NC: Tensor, teacher_NC: Tensor, targets_N: Tensor) -> Agreement:
    """Agreement of two classifiers' logits. Values are NaN if the teacher is never right, or never wrong."""
    log_s, log_t = student_NC.double().log_softmax(1), teacher_NC.double().log_softmax(1)
    guess_N, theirs_N = log_s.argmax(1), log_t.argmax(1)
    right_N, theirs_right_N = guess_N == targets_N, theirs_N == targets_N

    def percent(hits: Tensor) -> float:
        return 100 * float(hits.double().mean())

    return Agreement(
        percent(guess_N == theirs_N),
        float((log_t.exp() * (log_t - log_s)).sum(1).mean()),
        percent(right_N[theirs_right_N]),
        percent(right_N[~theirs_right_N]),
        percent((guess_N == theirs_N)[~theirs_right_N]),
    )


def class_accuracy(logits_NC: Tensor, targets_N: Tensor) -> Tensor:
    """Accuracy of each class in percent: (C,) float64, NaN for a class without samples."""
    classes = logits_NC.shape[1]
    hit_N = (logits_NC.argmax(1) == targets_N).double()
    hits_C = torch.zeros(classes, dtype=torch.float64).index_add(0, targets_N, hit_N)
    return 100 * hits_C / targets_N.bincount(minlength=classes)


class Confusion(NamedTuple):
    """Number of images of a class that are predicted as another class, by the student and by the teacher."""

    label: int
    guess: int
    student: int
    teacher: int
    of: int


def lost_pairs(student_NC: Tensor, teacher_NC: Tensor, targets_N: Tensor, most: int = 10) -> list[Confusion]:
    """The pairs of classes that the student confuses more often than the teacher, the largest difference first."""
    classes = student_NC.shape[1]
    ours, theirs = (_confusions(logits_NC, targets_N) for logits_NC in (student_NC, teacher_NC))
    lost = (ours - theirs).fill_diagonal_(0).flatten()
    of = targets_N.bincount(minlength=classes).tolist()
    # Ties are sorted by the student's count, then by label and prediction, so that the table is deterministic.
    pairs = sorted(lost.nonzero().flatten().tolist(), key=lambda i: (-int(lost[i]), -int(ours.flatten()[i]), i))
    found = []
    for label, guess in (divmod(i, classes) for i in pairs[:most] if lost[i] > 0):
        found.append(Confusion(label, guess, int(ours[label, guess]), int(theirs[label, guess]), of[label]))
    return found


def _confusions(logits_NC: Tensor, targets_N: Tensor) -> Tensor:
    """(C, C): number of samples of each class with each prediction."""
    return torch.from_numpy(confusion_matrix(targets_N, logits_NC.argmax(1), labels=range(logits_NC.shape[1])))


def precision_at(scores_N: Tensor, wrong_N: Tensor, k: int) -> float:
    """Share of faults among the k samples with the highest scores, in [0, 1]. Ties go to the earlier sample."""
    return float(wrong_N[scores_N.argsort(descending=True, stable=True)[:k]].double().mean())


def area_under_curve(scores_N: Tensor, wrong_N: Tensor) -> float:
    """Area under the ROC curve: the probability that a fault scores higher than a correct sample. Ties count half.

    NaN if all samples are faults, or none.
    """
    if bool(wrong_N.all()) or not bool(wrong_N.any()):
        return float("nan")
    _, rank_N = scores_N.unique(return_inverse=True)  # scikit-learn refuses scores that are not finite
    return float(roc_auc_score(wrong_N, rank_N))
