"""SimKD's student: its own body, a projector, and the teacher's classifier.

Shapes: B batch, C channels of a map, H height, W width, K classes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError, ModelError
from disk_kd.models.factory import multiply_adds

_TIMM = ("feature_info", "forward_features", "forward_head", "get_classifier", "reset_classifier", "num_features")


class SimKDStudent(nn.Module):
    """A student whose last map is projected to the teacher's channels, averaged, and classified as the teacher does.

    The projector is a bottleneck of 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU; its two inner
    maps have the teacher's channels divided by `factor`. A student map that is larger than the teacher's is averaged
    down to the teacher's size first; of a smaller one, `disk_kd.losses.simkd_loss` averages the teacher's.
    Only the student and the projector train: the classifier is a frozen copy.

    It is a timm model to those who use it: `forward_features` gives the projected map, `forward_head` pools and
    classifies it, `feature_info` names the student's stages. To load its state, build it again from two models of
    the same names.

    Args:
        student: a timm model whose last map is (B, C, H, W). It becomes a part of this module, and loses its own
            classifier.
        teacher: a trained timm model of the same classes, whose head is an average over the last map and a linear
            classifier. It is left as it is.
        factor: how many times narrower than the teacher's map the inner maps are.

    Raises:
        ModelError: a model lacks what timm's models have, the classes differ, or the teacher's head is another.
        ConfigError: `factor` is not from 1 to the channels of the teacher's map.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier",
    CVPR 2022, section 3.2, with the projector of its experiments (factor 2).
    Departs: which of two maps is the larger is told by the strides (`feature_info`), since at inference there is no
    teacher to compare with.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, factor: int = 2) -> None:
        super().__init__()
        body: Any = student
        reused: Any = teacher
        _check_models(body, reused)
        channels = reused.num_features
        if not 1 <= factor <= channels:
            raise ConfigError(f"factor must be from 1 to the teacher's {channels} channels, got {factor}; try 2")
        classifier = _frozen_classifier(reused, like=next(student.parameters()))

        self.num_classes: int = reused.num_classes
        self.num_features: int = channels
        self.head_hidden_size: int = channels
        self.pretrained_cfg = getattr(body, "pretrained_cfg", None) or {}
        self.feature_info = [{**info, "module": f"student.{info['module']}"} for info in body.feature_info]
        self.shrink = max(1, _stride(reused) // _stride(body))
        own = body.get_classifier()
        self._own_parameters = sum(parameter.numel() for parameter in own.parameters())
        self._own_multiply_adds = own.weight.numel()
        body.reset_classifier(0)
        self.student = body
        self.projector = _projector(body.num_features, channels, channels // factor).to(classifier.weight)
        self.classifier = classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, 3, height, width) to the projected map (B, C, H, W), C of the teacher.

        Raises:
            ModelError: the student's last map is not (B, its num_features, H, W).
        """
        map_BCHW = self.student.forward_features(x)
        if map_BCHW.dim() != 4 or map_BCHW.shape[1] != self.student.num_features:
            raise ModelError(
                f"the last map of {type(self.student).__name__} must be (B, {self.student.num_features}, H, W), got "
                f"{tuple(map_BCHW.shape)}; use a convolutional student"
            )
        if self.shrink > 1:
            height, width = (max(1, side // self.shrink) for side in map_BCHW.shape[2:])
            map_BCHW = F.adaptive_avg_pool2d(map_BCHW, (height, width))
        return self.projector(map_BCHW)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the projected map to logits (B, K), or with `pre_logits` to pooled features (B, C)."""
        pooled_BC = x.mean((2, 3))
        return pooled_BC if pre_logits else self.classifier(pooled_BC)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, height, width) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))

    def forward_with_projection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and the projected map (B, C, H, W) that `simkd_loss` compares, in one forward pass."""
        projected_BCHW = self.forward_features(x)
        return self.forward_head(projected_BCHW), projected_BCHW

    def get_classifier(self) -> nn.Module:
        """The teacher's classifier, frozen."""
        return self.classifier

    def added_cost(self, image_size: tuple[int, int, int] | None = None) -> dict[str, int]:
        """What inference costs more than with the plain student and its own classifier.

        Args:
            image_size: channels, height and width of an image; None: the student's usual one.

        Returns:
            "parameters", and "multiply_adds" for one image.

        Raises:
            ModelError: the student does not take such an image.
        """
        image_size = image_size or self.pretrained_cfg.get("input_size", (3, 32, 32))
        added = [*self.projector.parameters(), *self.classifier.parameters()]
        whole, body = multiply_adds(self, image_size), multiply_adds(self.student, image_size)
        return {
            "parameters": sum(parameter.numel() for parameter in added) - self._own_parameters,
            "multiply_adds": whole - body - self._own_multiply_adds,
        }


def _projector(in_channels: int, out_channels: int, inner: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out, kernel in ((in_channels, inner, 1), (inner, inner, 3), (inner, out_channels, 1)):
        conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(width_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _stride(model: Any) -> int:
    """Pixels of the image to one place of the last map, along a side."""
    return model.feature_info[-1]["reduction"]


def _check_models(student: Any, teacher: Any) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        missing = [attribute for attribute in _TIMM if not hasattr(model, attribute)]
        if missing:
            raise ModelError(
                f"the {name} {type(model).__name__} has no {' and no '.join(missing)}, which SimKD needs; "
                "use a convolutional timm model"
            )
    if student.num_classes != teacher.num_classes or not student.num_classes:
        raise ModelError(
            f"teacher has {teacher.num_classes} classes, the student {student.num_classes}; SimKD needs both with "
            "their own classifier, for the same dataset (num_classes)"
        )


@torch.no_grad()
def _frozen_classifier(teacher: Any, like: Tensor) -> nn.Linear:
    """A copy of the teacher's classifier, of the type and on the device of `like`.

    Raises:
        ModelError: it is not linear, or does not give the teacher's logits of the average of a map.
    """
    # The whole copy, not the classifier alone: eval mode must not reach the teacher.
    whole = copy.deepcopy(teacher).to(like).eval()
    classifier = whole.get_classifier()
    size = (2, teacher.num_features, 4, 4)
    map_BCHW = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        logits_BK = whole.forward_head(map_BCHW)
        fits = isinstance(classifier, nn.Linear) and torch.allclose(
            classifier(map_BCHW.mean((2, 3))), logits_BK, rtol=1e-2, atol=1e-2
        )
    except (RuntimeError, ValueError, AssertionError):
        fits = False
    if not fits:
        raise ModelError(
            f"the head of {type(teacher).__name__} must be an average over the last map and a linear classifier, of "
            "which SimKD reuses the second; use a teacher such as a ResNet"
        )
    return classifier.requires_grad_(False)
