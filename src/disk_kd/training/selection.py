"""Choice of the checkpoint: the latest one whose validation accuracy is within the margin of the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

RULE = "the latest checkpoint within one standard error of the best on validation"
BALANCED_RULE = "the latest checkpoint within one standard error of the best balanced accuracy on validation"
RULES = {"top1": RULE, "balanced": BALANCED_RULE}
WITHOUT_VALIDATION = "the last checkpoint, because there is no validation split"


def score_and_margin(metrics: Mapping[str, float], select_by: Literal["top1", "balanced"]) -> tuple[float, float]:
    """The accuracy that chooses the checkpoint, and the margin below it if it is the best, in percentage points.

    Args:
        metrics: of a checkpoint on validation, by name.
        select_by: "top1", or "balanced" for the mean of the accuracies of the classes.
    """
    if select_by == "balanced":
        return metrics["balanced"], metrics["balanced_error"]
    return metrics["top1"], selection_margin(metrics["top1"], int(metrics["samples"]))


def selection_margin(top1: float, images: int) -> float:
    """One standard error of an accuracy, in percentage points: the margin below the best for choosing a checkpoint.

    100 sqrt(p (1 - p) / (n + 4)), p = (right + 2) / (n + 4)

    Two right and two wrong answers are added, so that the error of 100 % is not 0. Source of the rule: Breiman et al.,
    "Classification and Regression Trees", 1984, section 3.4.3; of the four answers: Agresti, Coull, "Approximate is
    Better than Exact for Interval Estimation of Binomial Proportions", 1998.

    Args:
        top1: accuracy, percent.
        images: n, number of validation images.
    """
    p = (top1 / 100 * images + 2) / (images + 4)
    return 100 * (p * (1 - p) / (images + 4)) ** 0.5
