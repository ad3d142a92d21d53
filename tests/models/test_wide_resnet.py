"""The benchmark's wide ResNets: parity with the released networks. What all families share is in test_staged."""

from __future__ import annotations

import pytest
import timm
from model_cases import facts, names, outputs, released_facts, released_outputs

NAMES, WITH_OUTPUTS = names("cifar_wrn")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_keys_shapes_and_cost_are_the_released_ones(name):
    assert facts(name) == released_facts(name)


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_are_the_released_ones(name):
    assert outputs(name) == pytest.approx(released_outputs(name), rel=1e-9)


@pytest.mark.parametrize(("name", "depth"), [("cifar_wrn_40_1", 40), ("cifar_wrn_40_2", 40), ("cifar_wrn_16_2", 16)])
def test_depth_counts_the_convolutions_of_a_wrn(name, depth):
    """As the paper counts: one shortcut of each stage, the stem, and two of each block."""
    model = timm.create_model(name)
    blocks = sum(len(model.get_submodule(f"layer{index}")) for index in (1, 2, 3))
    assert 2 * blocks + 1 + 3 == depth
