"""Class weights and logit adjustment: by hand, frozen, by identities, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from disk_kd.errors import ConfigError
from disk_kd.losses import class_weights, logit_shift

COUNTS = torch.tensor([500, 50, 5])


def test_by_hand_and_frozen() -> None:
    assert class_weights(torch.tensor([30, 10]), "inverse").tolist() == pytest.approx([0.5, 1.5])
    assert logit_shift(torch.tensor([3, 1])).tolist() == pytest.approx([math.log(0.75), math.log(0.25)])
    slow = []
    for count in COUNTS.tolist():
        effective = sum(0.99**power for power in range(count))
        slow.append(1 / effective)
    expected = np.array(slow) * 3 / sum(slow)
    assert class_weights(COUNTS, "effective", 0.99).tolist() == pytest.approx(expected)
    frozen = [0.1261298833, 0.3172229713, 2.5566471454]
    assert class_weights(COUNTS, "effective", 0.99).tolist() == pytest.approx(frozen, abs=1e-9)


def test_the_effective_number_lies_between_no_weights_and_the_inverse() -> None:
    assert class_weights(COUNTS, "effective", 0.0).tolist() == pytest.approx([1, 1, 1])
    inverse = class_weights(COUNTS, "inverse")
    torch.testing.assert_close(class_weights(COUNTS, "effective", 1 - 1e-12), inverse, rtol=1e-8, atol=0.0)
    assert class_weights(COUNTS, "effective", 0.999).mean() == pytest.approx(1)


def test_a_class_without_images() -> None:
    weights = class_weights(torch.tensor([4, 0, 4]), "effective", 0.9)
    assert weights.tolist() == pytest.approx([1, 0, 1])
    assert logit_shift(torch.tensor([4, 0])).tolist() == pytest.approx([0, math.log(1 / 4)])
    assert logit_shift(torch.tensor([4, 4]), 2.0).tolist() == pytest.approx([2 * math.log(0.5)] * 2)


def test_bad_input_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown class weights 'inverted'"):
        class_weights(COUNTS, "inverted")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"beta of class weights must be in \[0, 1\), not 1"):
        class_weights(COUNTS, "effective", 1.0)
    with pytest.raises(ConfigError, match="by their labelled images, but there are none"):
        logit_shift(torch.zeros(3))
