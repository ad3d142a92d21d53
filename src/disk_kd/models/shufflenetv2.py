"""The ShuffleNetV2 of the CIFAR-100 distillation benchmark, registered with timm as ``cifar_shufflenetv2``.

Three stages of 4, 8 and 4 blocks, each of which halves the map once, between a 1x1 stem and a 1x1 convolution to
1024 channels. A 32x32 image is 4x4 at the end; any other size works.

| name               | stem, stage widths | parameters | multiply-adds |
|--------------------|--------------------|-----------:|--------------:|
| cifar_shufflenetv2 | 24, 116-232-464    |  1,355,528 |      44.504 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`). The state-dict keys
(``layer1.0.conv1``, ``conv2``, ``linear``) are those of the checkpoints released with DiSK. Departure from the
paper, the benchmark's: the stem is a 1x1 convolution at stride 1, and no pooling follows it. Fresh weights are
torch's default, as the release's are.
The network: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018
(arXiv:1807.11164), at width 1.

Shapes: B batch, H and W height and width of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from disk_kd.models.staged import Stage, StagedNet, build, cifar_cfg, conv

__all__ = ["DownBlock", "SplitBlock", "shuffled"]

_STEM, _WIDTHS, _DEPTHS, _END = 24, (116, 232, 464), (4, 8, 4), 1024


def shuffled(left: Tensor, right: Tensor) -> Tensor:
    """Join two maps of as many channels, and shuffle in two groups: a channel of the one, one of the other, ..."""
    return torch.stack((left, right), dim=2).flatten(1, 2)


class SplitBlock(nn.Module):
    """Half of the channels through a 1x1, a 3x3 of each channel and a 1x1 convolution, the others untouched.

    Figure 3(c) of the paper.
    """

    def __init__(self, chs: int) -> None:
        super().__init__()
        half = chs // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, chs, H, W) to the same shape."""
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)))
        right = self.bn2(self.conv2(right))
        right = F.relu(self.bn3(self.conv3(right)))
        return shuffled(left, right)


class DownBlock(nn.Module):
    """Both branches take all channels and halve the map; the left one has no 1x1 convolution first.

    Figure 3(d) of the paper.
    """

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        half = out_chs // 2
        self.conv1 = conv(in_chs, in_chs, 3, stride=2, groups=in_chs)
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv2 = conv(in_chs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_chs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / 2, W / 2)."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffled(left, right)


def _conv_norm_act(index: int, convolution: nn.Conv2d) -> dict[str, nn.Module]:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return {f"conv{index}": convolution, f"bn{index}": norm, f"act{index}": nn.ReLU()}


def _stages(in_chans: int) -> list[Stage]:
    stages = [Stage(_conv_norm_act(1, conv(in_chans, _STEM, 1)), _STEM, reduction=1)]
    in_chs = _STEM
    for index, (width, depth) in enumerate(zip(_WIDTHS, _DEPTHS, strict=True), start=1):
        blocks = nn.Sequential(DownBlock(in_chs, width), *(SplitBlock(width) for _ in range(depth - 1)))
        stages.append(Stage({f"layer{index}": blocks}, width, reduction=2**index))
        in_chs = width
    return stages


default_cfgs = generate_default_cfgs(
    {"cifar_shufflenetv2": cifar_cfg("conv1", "linear", map_size=4, paper="arXiv:1807.11164")}
)


@register_model
def cifar_shufflenetv2(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> StagedNet:
    """ShuffleNetV2 at width 1."""
    final = Stage(_conv_norm_act(2, conv(_WIDTHS[-1], _END, 1)), _END, reduction=8)
    stages = _stages(in_chans)
    return build("cifar_shufflenetv2", pretrained, stages, "linear", in_chans, final=final, init=None, **kwargs)
