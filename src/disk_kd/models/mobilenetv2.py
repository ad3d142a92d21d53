"""The MobileNetV2s of the CIFAR-100 distillation benchmark, registered with timm as ``cifar_mobilenetv2*``.

Seven stages of inverted residual blocks, expanding six times, between a 3x3 stem of stride 2 and a 1x1
convolution to 1280 channels. A 32x32 image is 2x2 at the end; any other size works.

| name                 | width | parameters | multiply-adds |
|----------------------|------:|-----------:|--------------:|
| cifar_mobilenetv2    |   0.5 |    812,836 |       6.524 M |
| cifar_mobilenetv2_x2 |   1.0 |  2,353,060 |      22.381 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`). The state-dict keys
(``blocks.1.0.conv.3``, ``conv2.0``, ``classifier.0``) are those of the checkpoints released with DiSK.
Departures from the paper, both the benchmark's: the second stage does not stride; ReLU, not ReLU6. The first
stage keeps its 1x1 convolution, which other implementations leave out since it does not expand.
The network: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv:1801.04381).

Shapes: B batch, H and W height and width of a map.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from disk_kd.models.staged import Stage, StagedNet, build, cifar_cfg, conv

__all__ = ["InvertedResidual"]

_STEM, _END = 32, 1280

# Of each stage (table 2 of the paper): expansion, channels at width 1, blocks, stride.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

# The stages whose maps are read: the last of each size.
_READ = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a 3x3 one of each channel and a linear 1x1 one; x is added where shapes agree."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = in_chs * expansion
        self.residual = stride == 1 and in_chs == out_chs
        self.conv = nn.Sequential(
            conv(in_chs, mid, 1),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            conv(mid, mid, 3, stride, groups=mid),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            conv(mid, out_chs, 1),
            nn.BatchNorm2d(out_chs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv_norm_act(name: str, convolution: nn.Conv2d) -> dict[str, nn.Module]:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return {f"{name}.0": convolution, f"{name}.1": norm, f"{name}.2": nn.ReLU()}


def _stages(in_chans: int, width: float) -> list[Stage]:
    in_chs, reduction = int(_STEM * width), 2
    stages = [Stage(_conv_norm_act("conv1", conv(in_chans, in_chs, 3, stride=2)), in_chs, reduction)]
    modules: dict[str, nn.Module] = {}
    for index, (expansion, chs, depth, stride) in enumerate(_STAGES):
        out_chs = int(chs * width)
        first = InvertedResidual(in_chs, out_chs, stride, expansion)
        rest = (InvertedResidual(out_chs, out_chs, 1, expansion) for _ in range(depth - 1))
        modules[f"blocks.{index}"] = nn.Sequential(first, *rest)
        in_chs, reduction = out_chs, reduction * stride
        if index in _READ:
            stages.append(Stage(modules, out_chs, reduction))
            modules = {}
    return stages


def _cfg() -> dict[str, Any]:
    return cifar_cfg("conv1.0", "classifier.0", map_size=2, paper="arXiv:1801.04381")


default_cfgs = generate_default_cfgs({"cifar_mobilenetv2": _cfg(), "cifar_mobilenetv2_x2": _cfg()})


def _mobilenetv2(name: str, width: float, pretrained: bool, in_chans: int = 3, **kwargs: Any) -> StagedNet:
    stages = _stages(in_chans, width)
    final = Stage(_conv_norm_act("conv2", conv(stages[-1].num_chs, _END, 1)), _END, stages[-1].reduction)
    return build(name, pretrained, stages, "classifier.0", in_chans, final=final, **kwargs)


@register_model
def cifar_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV2 of half the paper's width."""
    return _mobilenetv2("cifar_mobilenetv2", 0.5, pretrained, **kwargs)


@register_model
def cifar_mobilenetv2_x2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV2 of the paper's width, twice the benchmark's usual one."""
    return _mobilenetv2("cifar_mobilenetv2_x2", 1.0, pretrained, **kwargs)
