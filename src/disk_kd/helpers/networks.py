"""Helper networks: g(x) in [0, 1] from outputs of teacher and student.

Legend: B batch, C channels, H and W a map's sides, F features. Names and shapes of the parameters are those
of the method's released helpers (Kag et al., ICLR 2023), so their weights load; each docstring gives
the release's name. Fresh weights are the release's too: the linear layers of its four CIFAR helpers (b23 to b26)
are drawn from Xavier's uniform, at most sqrt(6 / (fan_in + fan_out)), with biases of 0.01; all else is torch's default.

Each network is called with a dict of outputs, of which it `needs` some:
"student_map" and "teacher_map" (B, C, H, W), "teacher_pooled" (B, F), "teacher_logits" (B, classes).
It returns (B,) in float32 at least. It never sends a gradient into its inputs. In train mode a batch of one
image raises ConfigError, since batch norm has no variance to take.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError, nearest
from disk_kd.support import at_least_float32

_WIDTH = 256  # of the convolutions over a map, and of the layer that B3 normalises


class TeacherPooledHelper(nn.Module):
    """An MLP 64-128-1 on the teacher's pooled features; the release's b23."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_pooled"})
    sizes: ClassVar[tuple[str, ...]] = ("teacher_features",)

    def __init__(self, *, teacher_features: int) -> None:
        super().__init__()
        self.routing = _mlp(teacher_features, 64, 128)
        self.apply(_xavier)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return _probability(self.routing(_read(outputs, "teacher_pooled", self)))


class TeacherMapHelper(nn.Module):
    """Convolutions on the teacher's map before its last stage, then an MLP; the release's b24, its default."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_map"})
    sizes: ClassVar[tuple[str, ...]] = ("num_classes", "teacher_channels", "teacher_features")

    def __init__(self, *, num_classes: int, teacher_channels: int, teacher_features: int) -> None:
        super().__init__()
        self.ft_convs = _map_reader(teacher_channels, teacher_features)
        self.routing = _mlp(teacher_features, num_classes)
        self.apply(_xavier)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return _probability(self.routing(self.ft_convs(_read(outputs, "teacher_map", self))))


class StudentMapHelper(nn.Module):
    """As `TeacherMapHelper`, on the student's map; the release's b25."""

    needs: ClassVar[frozenset[str]] = frozenset({"student_map"})
    sizes: ClassVar[tuple[str, ...]] = ("num_classes", "student_channels", "student_features")

    def __init__(self, *, num_classes: int, student_channels: int, student_features: int) -> None:
        super().__init__()
        self.ft_convs = _map_reader(student_channels, student_features)
        self.routing = _mlp(student_features, num_classes)
        self.apply(_xavier)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return _probability(self.routing(self.ft_convs(_read(outputs, "student_map", self))))


class BothMapsHelper(nn.Module):
    """Convolutions on each model's map, then one MLP on both; the release's b26."""

    needs: ClassVar[frozenset[str]] = frozenset({"student_map", "teacher_map"})
    sizes: ClassVar[tuple[str, ...]] = (
        "num_classes",
        "student_channels",
        "teacher_channels",
        "student_features",
        "teacher_features",
    )

    def __init__(
        self,
        *,
        num_classes: int,
        student_channels: int,
        teacher_channels: int,
        student_features: int,
        teacher_features: int,
    ) -> None:
        super().__init__()
        self.s_ft_convs = _map_reader(student_channels, student_features)
        self.t_ft_convs = _map_reader(teacher_channels, teacher_features)
        self.routing = _mlp(teacher_features + student_features, num_classes)
        self.apply(_xavier)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        teacher_BF = self.t_ft_convs(_read(outputs, "teacher_map", self))
        student_BF = self.s_ft_convs(_read(outputs, "student_map", self))
        return _probability(self.routing(torch.cat([teacher_BF, student_BF], dim=1)))


class TeacherLogitsHelper(nn.Module):
    """An MLP on the teacher's logits; the release's B1, for ImageNet."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logits"})
    sizes: ClassVar[tuple[str, ...]] = ("num_classes",)

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.routing = _mlp(num_classes, 64, num_classes)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return _probability(self.routing(_read(outputs, "teacher_logits", self)))


class TeacherPooledDeepHelper(nn.Module):
    """An MLP classes-64-classes-1 on the teacher's pooled features; the release's B2, for ImageNet."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_pooled"})
    sizes: ClassVar[tuple[str, ...]] = ("num_classes", "teacher_features")

    def __init__(self, *, num_classes: int, teacher_features: int) -> None:
        super().__init__()
        self.routing = _mlp(teacher_features, num_classes, 64, num_classes)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return _probability(self.routing(_read(outputs, "teacher_pooled", self)))


class TeacherPooledNormHelper(nn.Module):
    """An MLP on the teacher's pooled features with a layer of L2 norm one; the release's B3, for ImageNet."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_pooled"})
    sizes: ClassVar[tuple[str, ...]] = ("num_classes", "teacher_features")

    def __init__(self, *, num_classes: int, teacher_features: int) -> None:
        super().__init__()
        self.routing1 = nn.Sequential(*_hidden(teacher_features, num_classes, _WIDTH))
        self.routing = _mlp(_WIDTH, num_classes)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        hidden_BF = self.routing1(_read(outputs, "teacher_pooled", self))
        return _probability(self.routing(F.normalize(hidden_BF, dim=1)))


HelperNetwork: TypeAlias = (
    TeacherPooledHelper
    | TeacherMapHelper
    | StudentMapHelper
    | BothMapsHelper
    | TeacherLogitsHelper
    | TeacherPooledDeepHelper
    | TeacherPooledNormHelper
)

HELPERS: dict[str, type[HelperNetwork]] = {
    "teacher-pooled": TeacherPooledHelper,
    "teacher-map": TeacherMapHelper,
    "student-map": StudentMapHelper,
    "both-maps": BothMapsHelper,
    "teacher-logits": TeacherLogitsHelper,
    "teacher-pooled-deep": TeacherPooledDeepHelper,
    "teacher-pooled-norm": TeacherPooledNormHelper,
}


def make_helper(name: str, **sizes: int) -> HelperNetwork:
    """Builds a helper network by name for the sizes of a student and a teacher.

    Args:
        name: a key of `HELPERS`.
        **sizes: any of num_classes, student_channels, teacher_channels (of the maps), student_features,
            teacher_features (of the pooled features). Sizes that the helper does not read are ignored.

    Raises:
        ConfigError: the name is unknown, or a size that this helper reads is missing.
    """
    if name not in HELPERS:
        raise ConfigError(f"unknown helper network {name!r}; {nearest(name, HELPERS)}")
    helper = HELPERS[name]
    missing = [size for size in helper.sizes if size not in sizes]
    if missing:
        raise ConfigError(f"helper {name!r} needs {', '.join(missing)}, got {', '.join(sizes) or 'nothing'}")
    return helper(**{size: sizes[size] for size in helper.sizes})


def _xavier(module: nn.Module) -> None:
    """A new linear layer of a CIFAR helper: weights from Xavier's uniform distribution, biases of 0.01."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.constant_(module.bias, 0.01)


def _hidden(*widths: int) -> list[nn.Module]:
    """Linear, batch norm and ReLU from each width to the next."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out), nn.ReLU()]
    return layers


def _mlp(*widths: int) -> nn.Sequential:
    """The hidden layers, then one output."""
    return nn.Sequential(*_hidden(*widths), nn.Linear(widths[-1], 1))


def _map_reader(channels: int, features: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions with batch norm and SiLU, mean over the map, linear: (B, features)."""
    layers: list[nn.Module] = []
    for width_in, kernel in ((channels, 1), (_WIDTH, 3), (_WIDTH, 1)):
        conv = nn.Conv2d(width_in, _WIDTH, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(_WIDTH), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTH, features))


def _read(outputs: dict[str, Tensor], name: str, helper: nn.Module) -> Tensor:
    """One of the outputs in the precision of the helper, without gradient. Stored outputs may be in half precision."""
    if name not in outputs:
        raise ConfigError(
            f"a helper reads {name!r}, got {', '.join(outputs) or 'nothing'}; add {name!r} to the outputs"
        )
    output = outputs[name].detach()
    if helper.training and len(output) == 1:
        raise ConfigError("a helper network trains on at least 2 images a batch, got 1; drop the last batch")
    return output.to(next(helper.parameters()).dtype)


def _probability(logit_B1: Tensor) -> Tensor:
    return torch.sigmoid(at_least_float32(logit_B1.squeeze(1)))
