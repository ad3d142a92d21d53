"""Residual blocks and the stages made of them, shared by the ResNets of this package.

The networks: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385).

Shapes: B batch, H and W height and width of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from disk_kd.models.staged import Stage, conv

__all__ = ["BasicBlock", "Bottleneck", "Shortcut", "residual_stages"]


class Shortcut(nn.Sequential):
    """The identity where shapes agree, else a strided 1x1 convolution with BatchNorm.

    Of fewer than 16 channels the stride is taken before the convolution, which is the same: there oneDNN's strided 1x1
    convolution, channels_last on a CPU, writes outside its memory in the backward pass when the threads' shares of the
    batch differ (torch 2.15).
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        if stride == 1 and in_chs == out_chs:
            super().__init__()
            self.stride = 1
        else:
            before = stride if in_chs < 16 else 1
            super().__init__(conv(in_chs, out_chs, 1, stride // before), nn.BatchNorm2d(out_chs))
            self.stride = before

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / stride, W / stride)."""
        return super().forward(x if self.stride == 1 else F.avg_pool2d(x, 1, self.stride))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ``relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))``.

    Args:
        in_chs: channels of the block's input.
        width: channels of its convolutions.
        stride: of the first convolution and the shortcut.
        shortcut: name of the shortcut in the state dict.
    """

    expansion = 1

    def __init__(self, in_chs: int, width: int, stride: int = 1, shortcut: str = "shortcut") -> None:
        super().__init__()
        self.conv1 = conv(in_chs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self._shortcut = shortcut
        self.add_module(shortcut, Shortcut(in_chs, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.get_submodule(self._shortcut)(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (which strides) and a 1x1 convolution around a shortcut; four times as wide at its end."""

    expansion = 4

    def __init__(self, in_chs: int, width: int, stride: int = 1, shortcut: str = "shortcut") -> None:
        super().__init__()
        out_chs = width * self.expansion
        self.conv1 = conv(in_chs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_chs, 1)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self._shortcut = shortcut
        self.add_module(shortcut, Shortcut(in_chs, out_chs, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.get_submodule(self._shortcut)(x))


def residual_stages(
    in_chans: int,
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    widths: Sequence[int],
    shortcut: str = "shortcut",
) -> list[Stage]:
    """A 3x3 stem and a stage of blocks for each depth, at strides 1, 2, 2, ...

    Args:
        in_chans: channels of the image.
        block: of every stage; a `Bottleneck` stage gives four times its width.
        depths: blocks of each stage.
        widths: of the stem, then of each stage.
        shortcut: name of the blocks' shortcuts in the state dict.
    """
    chs, *of_stages = widths
    stem = {"conv1": conv(in_chans, chs, 3), "bn1": nn.BatchNorm2d(chs), "act1": nn.ReLU()}
    stages = [Stage(stem, chs, reduction=1)]
    for index, (depth, width) in enumerate(zip(depths, of_stages, strict=True)):
        first = block(chs, width, 1 if index == 0 else 2, shortcut)
        chs = width * block.expansion
        blocks = nn.Sequential(first, *(block(chs, width, 1, shortcut) for _ in range(depth - 1)))
        stages.append(Stage({f"layer{index + 1}": blocks}, chs, reduction=2**index))
    return stages
