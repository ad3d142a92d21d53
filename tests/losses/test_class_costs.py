from __future__ import annotations

import numpy as np
import pytest
import torch

from disk_kd.errors import ConfigError
from disk_kd.losses import cka_relations, class_costs, classifier_relations


def features(classes: int = 4, images: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randn(classes, images, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """tr(K H L H) with the kernels and the centring matrix written out."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    return np.trace(x @ x.T @ centre @ y @ y.T @ centre)


def test_cka_agrees_with_slow_loop() -> None:
    x_CNF = features()
    found_CC = cka_relations(x_CNF)
    for j, x in enumerate(x_CNF.numpy()):
        for k, y in enumerate(x_CNF.numpy()):
            expected = slow_hsic(x, y) / np.sqrt(slow_hsic(x, x) * slow_hsic(y, y))
            assert found_CC[j, k].item() == pytest.approx(expected, abs=1e-12)


def test_cka_ignores_scale_shift_and_rotation() -> None:
    x_CNF = features()
    rotation, _ = torch.linalg.qr(features(1, 5, 5)[0])
    moved_CNF = 3 * x_CNF @ rotation + 7
    torch.testing.assert_close(cka_relations(moved_CNF), cka_relations(x_CNF))
    same_CNF = torch.stack([x_CNF[0], moved_CNF[0]])
    torch.testing.assert_close(cka_relations(same_CNF), torch.ones(2, 2, dtype=torch.float64))


def test_a_class_without_spread_is_unlike_all_others() -> None:
    x_CNF = features()
    x_CNF[1] = 0.5
    assert cka_relations(x_CNF)[1].tolist() == pytest.approx([0, 1, 0, 0])


def test_classifier_relations_are_cosines() -> None:
    weights_CF = features()[0]
    found_CC = classifier_relations(weights_CF)
    for j, w in enumerate(weights_CF.numpy()):
        for k, v in enumerate(weights_CF.numpy()):
            assert found_CC[j, k].item() == pytest.approx(w @ v / np.sqrt((w @ w) * (v @ v)), abs=1e-12)


def test_costs_rise_from_zero_to_one() -> None:
    relations_CC = torch.tensor([[1.0, 0.5], [-1.0, 1.0]], dtype=torch.float64)
    expected_CC = [[0.0, 1 - np.exp(-3 * 0.5)], [1 - np.exp(-3 * 2.0), 0.0]]
    assert class_costs(relations_CC, sharpness=3.0).tolist() == [pytest.approx(row, abs=1e-12) for row in expected_CC]
    rounded_CC = torch.tensor([[1 + 1e-6, 0.0], [0.0, 1.0]])
    assert class_costs(rounded_CC, sharpness=1.0).min() == 0


def test_half_precision_is_raised_and_no_gradient_flows() -> None:
    weights_CF = torch.randn(3, 4, requires_grad=True)
    costs_CC = class_costs(classifier_relations(weights_CF.bfloat16()), sharpness=1.0)
    assert costs_CC.dtype is torch.float32
    assert not costs_CC.requires_grad


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"relations must have shape \(classes, classes\), got \(2, 3\)"):
        class_costs(torch.zeros(2, 3), sharpness=1.0)
    with pytest.raises(ConfigError, match="sharpness must be finite and above 0, got 0"):
        class_costs(torch.eye(2), sharpness=0.0)
    with pytest.raises(ConfigError, match=r"at least 2 images a class, got \(3, 1, 5\)"):
        cka_relations(torch.zeros(3, 1, 5))
