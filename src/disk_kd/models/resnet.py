"""CIFAR-scale ResNets, registered with timm as ``cifar_resnet*``.

Four stages at strides 1, 2, 2, 2 after a 3x3 stem without pooling, so a 32x32 image is 4x4 at the last
stage; any other size works. The map before the last stage (``feature_info[-2]``) is 8x8.

| name                 | blocks            | stage widths         | parameters | multiply-adds |
|----------------------|-------------------|----------------------|-----------:|--------------:|
| cifar_resnet10_xxxs  | 1-1-1-1           | 4-8-8-16             |      8,008 |       0.772 M |
| cifar_resnet10_xxs   | 1-1-1-1           | 8-8-16-16            |     13,020 |       2.021 M |
| cifar_resnet10_xs    | 1-1-1-1           | 8-16-16-32           |     27,884 |       2.862 M |
| cifar_resnet10_s     | 1-1-1-1           | 8-16-32-64           |     83,852 |       4.160 M |
| cifar_resnet10_m     | 1-1-1-1           | 16-32-64-128         |    320,436 |      16.184 M |
| cifar_resnet10_l     | 1-1-1-1           | 32-64-128-256        |  1,252,100 |      63.825 M |
| cifar_resnet10       | 1-1-1-1           | 64-128-256-512       |  4,949,412 |     253.479 M |
| cifar_resnet18       | 2-2-2-2           | 64-128-256-512       | 11,220,132 |     555.469 M |
| cifar_resnet34       | 3-4-6-3           | 64-128-256-512       | 21,328,292 |    1159.449 M |
| cifar_resnet50       | 3-4-6-3 bottleneck| 64-128-256-512 (x4)  | 23,705,252 |    1298.014 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`). The state-dict keys
(``conv1``, ``layer1.0.conv1``, ``shortcut.0``, ``linear``) are those of the checkpoints released with DiSK. Fresh
weights are torch's default, as the release's are, not He's normal.
The networks: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385).

Shapes: B batch, C channels of the image, D channels of a map, H and W its height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from timm.layers import create_classifier, get_device_dtype
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor, nn
from torch.nn import functional as F

from disk_kd.errors import ModelError

__all__ = ["BasicBlock", "Bottleneck", "ResNet"]

CIFAR100_MEAN = (129.3 / 255, 124.1 / 255, 112.4 / 255)
CIFAR100_STD = (68.2 / 255, 65.4 / 255, 70.4 / 255)


def _conv(in_chs: int, out_chs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel_size, stride, padding=kernel_size // 2, bias=False)


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
            super().__init__(_conv(in_chs, out_chs, 1, stride // before), nn.BatchNorm2d(out_chs))
            self.stride = before

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / stride, W / stride)."""
        return super().forward(x if self.stride == 1 else F.avg_pool2d(x, 1, self.stride))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ``relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))``."""

    expansion = 1

    def __init__(self, in_chs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_chs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = Shortcut(in_chs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (which strides) and a 1x1 convolution around a shortcut; four times as wide at its end."""

    expansion = 4

    def __init__(self, in_chs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_chs = width * self.expansion
        self.conv1 = _conv(in_chs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_chs, 1)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.shortcut = Shortcut(in_chs, out_chs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


Block = type[BasicBlock] | type[Bottleneck]


def _stage(block: Block, in_chs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Return `depth` blocks, of which the first takes the stride."""
    first = block(in_chs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width) for _ in range(depth - 1)))


class ResNet(nn.Module):
    """A ResNet for small images, with the interface of a timm model.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each stage.
        widths: width of each stage; a `Bottleneck` stage puts out four times as much.
        num_classes: K; 0 leaves the classifier out, so the model returns pooled features.
        in_chans: C, channels of the image.
        global_pool: timm's pooling name (``avg``, ``max``, ``avgmax``, ``catavgmax``); empty for none.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = _conv(in_chans, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        outs = [width * block.expansion for width in widths]
        self.layer1 = _stage(block, widths[0], widths[0], depths[0], 1)
        self.layer2 = _stage(block, outs[0], widths[1], depths[1], 2)
        self.layer3 = _stage(block, outs[1], widths[2], depths[2], 2)
        self.layer4 = _stage(block, outs[2], widths[3], depths[3], 2)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": widths[0], "reduction": 1, "module": "act1"}]
        for index, chs in enumerate(outs):
            self.feature_info.append({"num_chs": chs, "reduction": 2**index, "module": f"layer{index + 1}"})

        self.num_features = outs[-1]
        self.global_pool, self.linear = create_classifier(outs[-1], num_classes, pool_type=global_pool)
        self.head_hidden_size = outs[-1] * self.global_pool.feat_mult()

    def _forward_maps(self, x: Tensor, taken: Collection[int] = (), last: int = 4) -> tuple[Tensor, list[Tensor]]:
        """Return the map of stage `last` (0 is the stem), and those of the stages in `taken`, in order."""
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [x] if 0 in taken else []
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for index, stage in enumerate(stages[:last], start=1):
            x = checkpoint_seq(stage, x) if recompute else stage(x)
            if index in taken:
                maps.append(x)
        return x, maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the last stage's map (B, D, H / 8, W / 8)."""
        return self._forward_maps(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last map to logits (B, K), or with `pre_logits` to pooled features (B, D)."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map and the maps at `indices` of `feature_info` in one epoch (timm's protocol).

        Args:
            x: images (B, C, H, W).
            indices: an int takes the last maps, a list picks them, None takes all five.
            norm: without effect, there is no final norm.
            stop_early: leave out the stages after the last map asked for.
            output_fmt: ``NCHW``, the only layout there is.
            intermediates_only: return the list of maps alone.

        Raises:
            ModelError: another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"output_fmt must be 'NCHW' for a ResNet, not {output_fmt!r}")
        every = range(len(self.feature_info))
        if indices is None or isinstance(indices, int):
            indices = list(every[-(indices or len(every)) :])
        taken = {every[index] for index in indices}
        x, maps = self._forward_maps(x, taken, last=max(taken) if stop_early else every[-1])
        return maps if intermediates_only else (x, maps)

    def get_classifier(self) -> nn.Module:
        """Return the classifier: a linear layer, or the identity when `num_classes` is 0."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier of `num_classes` (0: none); `global_pool` None keeps the pooling."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        place = get_device_dtype(self)
        self.num_classes = num_classes
        self.global_pool, self.linear = create_classifier(self.num_features, num_classes, pool_type=pool, **place)
        self.global_pool.train(self.training)
        self.linear.train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for layer-wise learning rates: one group a block, or a stage if `coarse`."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


def _cfg(**weights: str) -> dict[str, Any]:
    return {
        **weights,
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "mean": CIFAR100_MEAN,
        "std": CIFAR100_STD,
        "first_conv": "conv1",
        "classifier": "linear",
        "paper_ids": "arXiv:1512.03385",
    }


def _shipped(name: str) -> dict[str, Any]:
    """With weights for CIFAR-100 that are part of this package: ``pretrained/README.md`` tells how they were made."""
    return _cfg(file=str(Path(__file__).parent / "pretrained" / f"{name}.safetensors"))


# The others have neither file nor url: with ``pretrained=True`` timm raises instead of leaving weights random.
default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet10_xxxs": _cfg(),
        "cifar_resnet10_xxs": _cfg(),
        "cifar_resnet10_xs": _cfg(),
        "cifar_resnet10_s": _shipped("cifar_resnet10_s"),
        "cifar_resnet10_m": _cfg(),
        "cifar_resnet10_l": _shipped("cifar_resnet10_l"),
        "cifar_resnet10": _cfg(),
        "cifar_resnet18": _cfg(),
        "cifar_resnet34": _cfg(),
        "cifar_resnet50": _cfg(),
    }
)


def _resnet10(name: str, widths: tuple[int, ...], pretrained: bool, **kwargs: Any) -> ResNet:
    return _resnet(name, BasicBlock, (1, 1, 1, 1), widths, pretrained, **kwargs)


def _resnet(
    name: str, block: Block, depths: tuple[int, ...], widths: tuple[int, ...], pretrained: bool, **kwargs: Any
) -> ResNet:
    return build_model_with_cfg(ResNet, name, pretrained, block=block, depths=depths, widths=widths, **kwargs)


@register_model
def cifar_resnet10_xxxs(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 4-8-8-16."""
    return _resnet10("cifar_resnet10_xxxs", (4, 8, 8, 16), pretrained, **kwargs)


@register_model
def cifar_resnet10_xxs(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 8-8-16-16."""
    return _resnet10("cifar_resnet10_xxs", (8, 8, 16, 16), pretrained, **kwargs)


@register_model
def cifar_resnet10_xs(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 8-16-16-32."""
    return _resnet10("cifar_resnet10_xs", (8, 16, 16, 32), pretrained, **kwargs)


@register_model
def cifar_resnet10_s(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 8-16-32-64."""
    return _resnet10("cifar_resnet10_s", (8, 16, 32, 64), pretrained, **kwargs)


@register_model
def cifar_resnet10_m(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 16-32-64-128."""
    return _resnet10("cifar_resnet10_m", (16, 32, 64, 128), pretrained, **kwargs)


@register_model
def cifar_resnet10_l(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 32-64-128-256."""
    return _resnet10("cifar_resnet10_l", (32, 64, 128, 256), pretrained, **kwargs)


@register_model
def cifar_resnet10(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 of widths 64-128-256-512."""
    return _resnet10("cifar_resnet10", (64, 128, 256, 512), pretrained, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18."""
    return _resnet("cifar_resnet18", BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), pretrained, **kwargs)


@register_model
def cifar_resnet34(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34."""
    return _resnet("cifar_resnet34", BasicBlock, (3, 4, 6, 3), (64, 128, 256, 512), pretrained, **kwargs)


@register_model
def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50."""
    return _resnet("cifar_resnet50", Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), pretrained, **kwargs)
