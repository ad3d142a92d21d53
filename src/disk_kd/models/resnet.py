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

Shapes: C channels of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from disk_kd.models.residual import BasicBlock, Bottleneck, residual_stages
from disk_kd.models.staged import StagedNet, cifar_cfg

__all__ = ["ResNet"]

Block = type[BasicBlock] | type[Bottleneck]


class ResNet(StagedNet):
    """A ResNet of four stages for small images, with the interface of a timm model.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each stage.
        widths: width of each stage; a `Bottleneck` stage puts out four times as much.
        in_chans: C, channels of the image.
        kwargs: the others of `StagedNet`.
    """

    map_output = "stage3"
    """The map before the last stage, which the released helpers of these networks read."""

    def __init__(
        self, block: Block, depths: tuple[int, ...], widths: tuple[int, ...], in_chans: int = 3, **kwargs: Any
    ) -> None:
        stages = residual_stages(in_chans, block, depths, (widths[0], *widths))
        super().__init__(stages, "linear", in_chans=in_chans, init=None, **kwargs)
        self.grad_checkpointing = False

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        recompute = self.grad_checkpointing and torch.is_grad_enabled() and isinstance(module, nn.Sequential)
        return checkpoint_seq(module, x) if recompute else module(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for layer-wise learning rates: one group a block, or a stage if `coarse`."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


def _cfg(**weights: str) -> dict[str, Any]:
    return weights | cifar_cfg("conv1", "linear", map_size=4, paper="arXiv:1512.03385")


def _shipped(name: str) -> dict[str, Any]:
    """With CIFAR-100 weights in this package. ``pretrained/README.md`` describes how they were made."""
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
