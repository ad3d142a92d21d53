"""The VGGs of the CIFAR-100 distillation benchmark, registered with timm as ``cifar_vgg*``.

Five blocks of 3x3 convolutions with BatchNorm, of widths 64-128-256-512-512; before the second, third and fourth
the map is max-pooled to half. A 32x32 image is 4x4 at the end; any other size from 8 works.

| name        | convolutions of a block | parameters | multiply-adds |
|-------------|------------------------:|-----------:|--------------:|
| cifar_vgg8  |                       1 |  3,965,028 |      96.193 M |
| cifar_vgg13 |                       2 |  9,462,180 |     284.936 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`). Departures from the paper, all
the benchmark's: BatchNorm; global pooling and one linear layer in place of three; no pooling before the last
block. There the benchmark pools images of 64x64 once more; here they take the same way as all.
The networks: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015 (arXiv:1409.1556), vgg13 being configuration B.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from disk_kd.models.staged import Stage, StagedNet, build, cifar_cfg

__all__: list[str] = []

_WIDTHS = (64, 128, 256, 512, 512)
_REDUCTIONS = (1, 2, 4, 8, 8)


def _block(in_chs: int, out_chs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for chs in (in_chs, *[out_chs] * (depth - 1)):
        # With a bias, although BatchNorm takes it away again: so the benchmark counts its parameters.
        layers += [nn.Conv2d(chs, out_chs, 3, padding=1), nn.BatchNorm2d(out_chs), nn.ReLU()]
    return nn.Sequential(*layers)


def _stages(in_chans: int, depth: int) -> list[Stage]:
    stages, in_chs, before = [], in_chans, 1
    for index, (width, reduction) in enumerate(zip(_WIDTHS, _REDUCTIONS, strict=True)):
        pool: dict[str, nn.Module] = {f"pool{index}": nn.MaxPool2d(2)} if reduction > before else {}
        stages.append(Stage(pool | {f"block{index}": _block(in_chs, width, depth)}, width, reduction))
        in_chs, before = width, reduction
    return stages


def _cfg() -> dict[str, Any]:
    return cifar_cfg("block0.0", "classifier", map_size=4, paper="arXiv:1409.1556")


default_cfgs = generate_default_cfgs({"cifar_vgg8": _cfg(), "cifar_vgg13": _cfg()})


def _vgg(name: str, depth: int, pretrained: bool, in_chans: int = 3, **kwargs: Any) -> StagedNet:
    return build(name, pretrained, _stages(in_chans, depth), "classifier", in_chans, **kwargs)


@register_model
def cifar_vgg8(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """VGG of five convolutions."""
    return _vgg("cifar_vgg8", 1, pretrained, **kwargs)


@register_model
def cifar_vgg13(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """VGG of ten convolutions."""
    return _vgg("cifar_vgg13", 2, pretrained, **kwargs)
