from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score

from disk_kd.metrics import metrics_of
from disk_kd.report.measures import (
    agreement,
    area_under_curve,
    class_accuracy,
    lost_pairs,
    precision_at,
    reliability,
    risk_coverage,
)


@pytest.fixture
def logits() -> torch.Tensor:
    return 2 * torch.randn(300, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(7, (300,), generator=torch.Generator().manual_seed(1))


def test_bins_sum_to_the_expected_calibration_error(logits: torch.Tensor, targets: torch.Tensor) -> None:
    bins = reliability(logits, targets)
    assert sum(b.share for b in bins) == pytest.approx(1)
    error = sum(b.share * abs(b.accuracy - b.confidence) for b in bins)
    assert error == pytest.approx(metrics_of(logits, targets).ece)
    large = reliability(logits, targets, least=30)
    assert large == [b for b in bins if round(300 * b.share) >= 30]
    assert 0 < len(large) < len(bins)


def test_risk_of_the_most_confident() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    risk = risk_coverage(logits, torch.tensor([0, 0, 1]))
    assert risk.tolist() == pytest.approx([0, 1 / 2, 2 / 3])


def test_a_classifier_agrees_with_itself(logits: torch.Tensor, targets: torch.Tensor) -> None:
    same = agreement(logits, logits + 3, targets)
    assert (same.same_guess, same.right_where_teacher_right, same.same_error) == (100, 100, 100)
    assert (same.kl, same.right_where_teacher_wrong) == (pytest.approx(0, abs=1e-6), 0)
    always_right = torch.nn.functional.one_hot(targets, 7).float()
    assert math.isnan(agreement(logits, always_right, targets).same_error)


def test_agreement_counts() -> None:
    targets = torch.tensor([0, 0, 1, 1])
    student, teacher = (torch.eye(3)[torch.tensor(guess)] for guess in ([0, 1, 2, 1], [0, 0, 2, 0]))
    told = agreement(student, teacher, targets)
    assert told.same_guess == 50
    assert told.right_where_teacher_right == 50
    assert told.right_where_teacher_wrong == 50
    assert told.same_error == 50


def test_class_accuracy_is_the_diagonal(logits: torch.Tensor, targets: torch.Tensor) -> None:
    matrix = confusion_matrix(targets, logits.argmax(1), labels=range(8))
    with np.errstate(invalid="ignore"):
        expected = 100 * matrix.diagonal() / matrix.sum(1)
    assert class_accuracy(logits, targets).tolist() == pytest.approx(expected[:7].tolist())
    padded = torch.cat([logits, torch.full((300, 1), -9.0)], 1)
    assert math.isnan(class_accuracy(padded, targets)[7])


def test_lost_pairs_are_those_the_teacher_does_not_confuse() -> None:
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    student, teacher = (torch.eye(3)[torch.tensor(guess)] for guess in ([1, 1, 0, 2, 1, 0], [1, 0, 0, 1, 1, 0]))
    assert [tuple(pair) for pair in lost_pairs(student, teacher, targets)] == [(0, 1, 2, 1, 3), (1, 2, 1, 0, 2)]
    assert len(lost_pairs(student, teacher, targets, most=1)) == 1
    assert lost_pairs(teacher, student, targets) == []


def test_area_is_scikit_learns_with_ties() -> None:
    scores = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(2)).double()
    wrong = torch.rand(200, generator=torch.Generator().manual_seed(3)) < 0.2
    assert area_under_curve(scores, wrong) == pytest.approx(roc_auc_score(wrong, scores))
    assert math.isnan(area_under_curve(scores, torch.zeros(200, dtype=torch.bool)))
    assert area_under_curve(scores.where(scores < 8, torch.inf), wrong) == area_under_curve(scores, wrong)


def test_precision_of_the_first() -> None:
    scores, wrong = torch.tensor([1.0, 3.0, 2.0, 3.0]), torch.tensor([True, True, False, False])
    assert [precision_at(scores, wrong, k) for k in (1, 2, 3, 4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])
