"""The ResNets of the CIFAR-100 distillation benchmark, registered with timm as ``cifar_resnet*``.

Three stages of n basic blocks at strides 1, 2, 2 after a 3x3 stem: 6 n + 2 layers. A 32x32 image is 8x8 at
the last stage; any other size works.

| name              | n  | stem, stage widths | parameters | multiply-adds |
|-------------------|---:|--------------------|-----------:|--------------:|
| cifar_resnet20    |  3 | 16, 16-32-64       |    278,324 |      40.819 M |
| cifar_resnet32    |  5 | 16, 16-32-64       |    472,756 |      69.130 M |
| cifar_resnet56    |  9 | 16, 16-32-64       |    861,620 |     125.754 M |
| cifar_resnet110   | 18 | 16, 16-32-64       |  1,736,564 |     253.156 M |
| cifar_resnet8x4   |  1 | 32, 64-128-256     |  1,233,540 |     177.071 M |
| cifar_resnet32x4  |  5 | 32, 64-128-256     |  7,433,860 |    1083.041 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`). The state-dict keys
(``layer1.0.conv1``, ``downsample.0``, ``fc``) are those of the checkpoints released with DiSK. Where shapes
change, the shortcut is a strided 1x1 convolution with BatchNorm, where section 4.2 of the paper pads with
zeros.
The networks: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385).
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model

from disk_kd.models.residual import BasicBlock, residual_stages
from disk_kd.models.staged import StagedNet, build, cifar_cfg

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


def _cfg() -> dict[str, Any]:
    return cifar_cfg("conv1", "fc", map_size=8, paper="arXiv:1512.03385")


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet20": _cfg(),
        "cifar_resnet32": _cfg(),
        "cifar_resnet56": _cfg(),
        "cifar_resnet110": _cfg(),
        "cifar_resnet8x4": _cfg(),
        "cifar_resnet32x4": _cfg(),
    }
)


def _resnet(
    name: str, depth: int, widths: tuple[int, ...], pretrained: bool, in_chans: int = 3, **kwargs: Any
) -> StagedNet:
    stages = residual_stages(in_chans, BasicBlock, [depth] * 3, widths, shortcut="downsample")
    return build(name, pretrained, stages, "fc", in_chans, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """ResNet-20 of widths 16-32-64."""
    return _resnet("cifar_resnet20", 3, _NARROW, pretrained, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """ResNet-32 of widths 16-32-64."""
    return _resnet("cifar_resnet32", 5, _NARROW, pretrained, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """ResNet-56 of widths 16-32-64."""
    return _resnet("cifar_resnet56", 9, _NARROW, pretrained, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """ResNet-110 of widths 16-32-64."""
    return _resnet("cifar_resnet110", 18, _NARROW, pretrained, **kwargs)


@register_model
def cifar_resnet8x4(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """ResNet-8, four times as wide: 64-128-256."""
    return _resnet("cifar_resnet8x4", 1, _WIDE, pretrained, **kwargs)


@register_model
def cifar_resnet32x4(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """ResNet-32, four times as wide: 64-128-256."""
    return _resnet("cifar_resnet32x4", 5, _WIDE, pretrained, **kwargs)
