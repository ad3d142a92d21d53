"""The wide ResNets of the DiSK release, registered with timm as ``cifar_wrn_*`` (depth, then widening factor).

Three stages of n basic blocks at strides 1, 2, 2 after a 3x3 stem of 16 channels: 6 n + 4 layers, counting the
1x1 convolutions of the shortcuts. A 32x32 image is 8x8 at the last stage; any other size works.

| name             | n | stage widths | parameters | multiply-adds |
|------------------|--:|--------------|-----------:|--------------:|
| cifar_wrn_40_1   | 6 | 16-32-64     |    569,972 |      83.286 M |
| cifar_wrn_40_2   | 6 | 32-64-128    |  2,255,604 |     327.611 M |
| cifar_wrn_16_2   | 2 | 32-64-128    |    703,732 |     101.118 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`). The networks, their keys and
their outputs are the release's, which departs from the paper: its blocks are those of `cifar_resnet`, BatchNorm
and ReLU after each convolution and BatchNorm in the shortcut, where the paper's come before, with none in the
shortcut. Widths and depths are the paper's: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016
(arXiv:1605.07146).
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model

from disk_kd.models.cifar_resnet import residual_stages
from disk_kd.models.staged import StagedNet, build, cifar_cfg

__all__: list[str] = []


def _cfg() -> dict[str, Any]:
    return cifar_cfg("conv1", "fc", map_size=8, paper="arXiv:1605.07146")


default_cfgs = generate_default_cfgs({"cifar_wrn_40_1": _cfg(), "cifar_wrn_40_2": _cfg(), "cifar_wrn_16_2": _cfg()})


def _wide_resnet(name: str, depth: int, widen: int, pretrained: bool, in_chans: int = 3, **kwargs: Any) -> StagedNet:
    stages = residual_stages(in_chans, (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen))
    return build(name, pretrained, stages, "fc", in_chans, **kwargs)


@register_model
def cifar_wrn_40_1(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-40-1."""
    return _wide_resnet("cifar_wrn_40_1", 40, 1, pretrained, **kwargs)


@register_model
def cifar_wrn_40_2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-40-2."""
    return _wide_resnet("cifar_wrn_40_2", 40, 2, pretrained, **kwargs)


@register_model
def cifar_wrn_16_2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-16-2."""
    return _wide_resnet("cifar_wrn_16_2", 16, 2, pretrained, **kwargs)
