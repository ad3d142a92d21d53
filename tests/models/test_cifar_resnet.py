"""The benchmark's ResNets: parity with the released networks. What all families share is in test_staged."""

from __future__ import annotations

import pytest
from model_cases import facts, names, outputs, released_facts, released_outputs

NAMES, WITH_OUTPUTS = names("cifar_resnet")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_keys_shapes_and_cost_are_the_released_ones(name):
    assert facts(name) == released_facts(name)


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_are_the_released_ones(name):
    assert outputs(name) == pytest.approx(released_outputs(name), rel=1e-9)
