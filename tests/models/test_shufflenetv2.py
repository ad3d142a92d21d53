"""The benchmark's ShuffleNetV2: parity with the released networks. What all families share is in test_staged."""

from __future__ import annotations

import pytest
import torch
from model_cases import facts, names, outputs, released_facts, released_outputs
from test_resnet import images

from disk_kd.models.shufflenetv2 import SplitBlock, shuffled

NAMES, WITH_OUTPUTS = names("cifar_shufflenetv2")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_keys_shapes_and_cost_are_the_released_ones(name):
    assert facts(name) == released_facts(name)


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_are_the_released_ones(name):
    assert outputs(name) == pytest.approx(released_outputs(name), rel=1e-9)


def test_channels_are_shuffled_in_two_groups():
    left, right = images(chans=6, size=4).chunk(2, dim=1)
    expected = torch.channel_shuffle(torch.cat((left, right), dim=1), 2)
    assert torch.equal(shuffled(left, right), expected)


def test_a_split_block_leaves_half_of_the_channels_alone():
    x = images(chans=8, size=4)
    assert torch.equal(SplitBlock(8).double()(x)[:, ::2], x[:, :4])
