"""Wide ResNets in two forms, registered with timm as ``cifar_wrn_*`` (depth, then widening factor).

Three stages of n basic blocks at strides 1, 2, 2 after a 3x3 stem of 16 channels: 6 n + 4 layers, counting the
1x1 convolutions of the shortcuts. A 32x32 image is 8x8 at the last stage; any other size works.

| name                    | n | stage widths | parameters | multiply-adds |
|-------------------------|--:|--------------|-----------:|--------------:|
| cifar_wrn_16_2          | 2 | 32-64-128    |    703,284 |     101.118 M |
| cifar_wrn_40_1          | 6 | 16-32-64     |    569,780 |      83.286 M |
| cifar_wrn_40_2          | 6 | 32-64-128    |  2,255,156 |     327.611 M |
| cifar_wrn_16_2_postact  | 2 | 32-64-128    |    703,732 |     101.118 M |
| cifar_wrn_40_1_postact  | 6 | 16-32-64     |    569,972 |      83.286 M |
| cifar_wrn_40_2_postact  | 6 | 32-64-128    |  2,255,604 |     327.611 M |

Counted for 100 classes and one 3x32x32 image (`disk_kd.models.multiply_adds`).

``cifar_wrn_*`` are the paper's networks and those of the CIFAR-100 distillation benchmark (Tian et al., "Contrastive
Representation Distillation", ICLR 2020, arXiv:1910.10699), with the state-dict keys of its checkpoints
(``block1.layer.0.conv1``, ``convShortcut``, ``fc``): BatchNorm and ReLU come before each convolution, and the shortcut
has no BatchNorm. The map of a stage is what its last block gives, before the BatchNorm and ReLU that follow; that of
the stem is its convolution's. Fresh weights are the benchmark's: convolutions of He's normal (fan out), the bias of the
classifier zero.

``cifar_wrn_*_postact`` are the networks of the DiSK release, with its keys (``layer1.0.conv1``, ``fc``): the blocks of
`cifar_resnet`, BatchNorm and ReLU after each convolution and BatchNorm in the shortcut.
The networks: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016 (arXiv:1605.07146).

Shapes: B batch, H and W height and width of a map.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from disk_kd.models.residual import BasicBlock, residual_stages
from disk_kd.models.staged import Stage, StagedNet, build, cifar_cfg, conv, he_normal

__all__ = ["PreActBlock"]


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, around a shortcut.

    With a = relu(bn1(x)): ``conv2(relu(bn2(conv1(a)))) + x``; where the channels change, ``convShortcut(a)`` takes the
    place of x.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = conv(in_chs, out_chs, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = conv(out_chs, out_chs, 3)
        self.convShortcut = None if in_chs == out_chs and stride == 1 else conv(in_chs, out_chs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        y = F.relu(self.bn2(self.conv1(activated)))
        return self.conv2(y) + shortcut


def _preact_stages(in_chans: int, depth: int, widths: tuple[int, ...]) -> list[Stage]:
    """Return the stem and three stages of `depth` blocks; `widths` are the stem's and theirs."""
    stages = [Stage({"conv1": conv(in_chans, widths[0], 3)}, widths[0], reduction=1)]
    for index, stride in enumerate((1, 2, 2), start=1):
        width = widths[index]
        first = PreActBlock(widths[index - 1], width, stride)
        blocks = nn.Sequential(first, *(PreActBlock(width, width) for _ in range(depth - 1)))
        stages.append(Stage({f"block{index}.layer": blocks}, width, reduction=2 ** (index - 1)))
    return stages


def _init_preact(model: nn.Module) -> None:
    he_normal(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _cfg() -> dict[str, Any]:
    return cifar_cfg("conv1", "fc", map_size=8, paper="arXiv:1605.07146")


default_cfgs = generate_default_cfgs(
    {
        "cifar_wrn_16_2": _cfg(),
        "cifar_wrn_40_1": _cfg(),
        "cifar_wrn_40_2": _cfg(),
        "cifar_wrn_16_2_postact": _cfg(),
        "cifar_wrn_40_1_postact": _cfg(),
        "cifar_wrn_40_2_postact": _cfg(),
    }
)


def _wide_resnet(name: str, depth: int, widen: int, pretrained: bool, in_chans: int = 3, **kwargs: Any) -> StagedNet:
    blocks, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
    if name.endswith("_postact"):
        stages = residual_stages(in_chans, BasicBlock, [blocks] * 3, widths, shortcut="downsample")
        return build(name, pretrained, stages, "fc", in_chans, **kwargs)
    final = Stage({"bn1": nn.BatchNorm2d(widths[-1]), "act1": nn.ReLU()}, widths[-1], reduction=4)
    stages = _preact_stages(in_chans, blocks, widths)
    return build(name, pretrained, stages, "fc", in_chans, final=final, init=_init_preact, **kwargs)


@register_model
def cifar_wrn_16_2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-16-2."""
    return _wide_resnet("cifar_wrn_16_2", 16, 2, pretrained, **kwargs)


@register_model
def cifar_wrn_40_1(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-40-1."""
    return _wide_resnet("cifar_wrn_40_1", 40, 1, pretrained, **kwargs)


@register_model
def cifar_wrn_40_2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-40-2."""
    return _wide_resnet("cifar_wrn_40_2", 40, 2, pretrained, **kwargs)


@register_model
def cifar_wrn_16_2_postact(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-16-2 of the DiSK release."""
    return _wide_resnet("cifar_wrn_16_2_postact", 16, 2, pretrained, **kwargs)


@register_model
def cifar_wrn_40_1_postact(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-40-1 of the DiSK release."""
    return _wide_resnet("cifar_wrn_40_1_postact", 40, 1, pretrained, **kwargs)


@register_model
def cifar_wrn_40_2_postact(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """WRN-40-2 of the DiSK release."""
    return _wide_resnet("cifar_wrn_40_2_postact", 40, 2, pretrained, **kwargs)
