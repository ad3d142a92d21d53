"""The benchmark's MobileNetV2s: parity with the released networks. What all families share is in test_staged."""

from __future__ import annotations

import pytest
import timm
import torch
from model_cases import facts, names, outputs, released_facts, released_outputs
from test_resnet import images

from disk_kd.models.mobilenetv2 import InvertedResidual

NAMES, WITH_OUTPUTS = names("cifar_mobilenetv2")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_keys_shapes_and_cost_are_the_released_ones(name):
    assert facts(name) == released_facts(name)


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_are_the_released_ones(name):
    assert outputs(name) == pytest.approx(released_outputs(name), rel=1e-9)


def test_blocks_add_their_input_where_shapes_agree_alone():
    model = timm.create_model("cifar_mobilenetv2")
    found = {index: [block.residual for block in model.blocks[index]] for index in (0, 1, 2, 4, 6)}
    assert found == {0: [False], 1: [False, True], 2: [False, True, True], 4: [False, True, True], 6: [False]}


def test_a_block_is_linear_at_its_end():
    block = InvertedResidual(4, 4, stride=1, expansion=2).double().eval()
    x = images(chans=4, size=4)
    torch.testing.assert_close(block(x), x + block.conv(x))
    assert (block.conv(x) < 0).any()
