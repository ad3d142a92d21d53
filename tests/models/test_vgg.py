"""The benchmark's VGGs: sizes, and the place of each pooling. What all families share is in test_staged."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from disk_kd.models import multiply_adds

# The benchmark's published counts are 3.97 M and 9.46 M; there are no released numbers to compare outputs with.
COUNTS = {"cifar_vgg8": (3_965_028, 96_192_512), "cifar_vgg13": (9_462_180, 284_936_192)}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_cost(name):
    model = timm.create_model(name)
    assert (sum(p.numel() for p in model.parameters()), multiply_adds(model, (3, 32, 32))) == COUNTS[name]


@pytest.mark.parametrize(("name", "depth"), [("cifar_vgg8", 1), ("cifar_vgg13", 2)])
def test_blocks_are_convolutions_with_norm_and_activation(name, depth):
    model = timm.create_model(name)
    for index, width in enumerate((64, 128, 256, 512, 512)):
        layers = list(model.get_submodule(f"block{index}"))
        assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * depth
        assert {layer.out_channels for layer in layers[::3]} == {width}


@pytest.mark.parametrize("size", [32, 64])
def test_maps_are_pooled_before_the_second_third_and_fourth_block(size):
    model = timm.create_model("cifar_vgg8").eval()
    maps = model.forward_intermediates(torch.zeros(1, 3, size, size), intermediates_only=True)
    assert [size // m.shape[-1] for m in maps] == [1, 2, 4, 8, 8]


def test_pooling_takes_the_greatest():
    model = timm.create_model("cifar_vgg8").eval()
    before, after = model.forward_intermediates(torch.randn(1, 3, 8, 8), [0, 1], intermediates_only=True)
    greatest = before.unflatten(2, (4, 2)).unflatten(4, (4, 2)).amax((3, 5))
    torch.testing.assert_close(model.block1(greatest), after)
