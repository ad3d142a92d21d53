"""AutoAugment's CIFAR-10 policy on a batch of uint8 images, grouped by operation.

Cubuk, Zoph, Mane, Vasudevan, Le: "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019,
table 7. A sub-policy is two operations (name, probability, level 0 … 9); an image draws one of the 25,
then each operation happens with its probability. Levels mean what they mean in
`torchvision.transforms.AutoAugment`, and every operation gives torchvision's pixels (nearest neighbour,
to one grey level where torchvision's float32 rounding is at stake). `autoaugment_pillow` has the same
policy with Pillow's pixels.

Blends are done in tenths, in float32 that holds whole numbers exactly, and table values replace sines:
the result does not depend on the batch an image is in.

Shapes: B images, C channels (1 or 3), H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from disk_kd.data.remap import remap
from disk_kd.data.seeds import integers, uniform

CIFAR10_POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)
FILL = 128

Operation = Callable[[Tensor, Tensor], Tensor]
"""Maps uint8 images (B, C, H, W) and int64 levels (B,) to new images."""
Blend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps images, the images to blend with, and levels to new images."""


@dataclass(frozen=True, eq=False)
class Policy:
    """How the sub-policies of `CIFAR10_POLICY` are applied to pixels.

    Attributes:
        operations: functions by name.
        signed: names of the operations whose level is negative half of the time.
    """

    operations: Mapping[str, Operation]
    signed: frozenset[str]


def per_image(values_B: Tensor) -> Tensor:
    """One value for each image, as (B, 1, 1, 1)."""
    return values_B.view(-1, 1, 1, 1)


def grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (1, H, 1) and column numbers (1, 1, W)."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    return rows, torch.arange(width, device=images.device).view(1, 1, -1)


def _shift(level_B: Tensor, size: int) -> Tensor:
    """Whole pixels of a translation, (B, 1, 1): level 9 is 150/331 of the side, rounded towards zero."""
    return torch.div(level_B * (150 * size), 9 * 331, rounding_mode="trunc").view(-1, 1, 1)


def translate_x(images: Tensor, level_B: Tensor, shift: Callable[[Tensor, int], Tensor] = _shift) -> Tensor:
    """Shifts to the right by level/9 of 150/331 of the width."""
    rows, columns = grid(images)
    return remap(images, rows, columns - shift(level_B, images.shape[-1]), FILL)


def translate_y(images: Tensor, level_B: Tensor, shift: Callable[[Tensor, int], Tensor] = _shift) -> Tensor:
    """Shifts down by level/9 of 150/331 of the height."""
    rows, columns = grid(images)
    return remap(images, rows - shift(level_B, images.shape[-2]), columns, FILL)


def shear_y(images: Tensor, level_B: Tensor) -> Tensor:
    """Shears along y about the left upper corner by 0.3 level/9 pixels a pixel."""
    rows, columns = grid(images)
    # in 60ths of a pixel, so that the nearest row is found in whole numbers
    offset = level_B.view(-1, 1, 1) * (2 * columns + 1)
    return remap(images, rows + torch.div(offset + 30, 60, rounding_mode="floor"), columns, FILL)


def rotate(images: Tensor, level_B: Tensor) -> Tensor:
    """Rotates about the centre by 30 level/9 degrees, counter-clockwise for positive levels."""
    height, width = images.shape[-2:]
    angles = [math.radians(30 * level / 9) for level in range(-9, 10)]
    table = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], device=images.device)
    cosine, sine = table[level_B + 9].T.reshape(2, -1, 1, 1)
    rows, columns = grid(images)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    source_y = (sine * x + cosine * y) + (height - 1) / 2
    source_x = (cosine * x - sine * y) + (width - 1) / 2
    return remap(images, source_y.round_().long(), source_x.round_().long(), FILL)


def _blend(images: Tensor, degenerate: Tensor, level_B: Tensor) -> Tensor:
    """degenerate + (1 + level/10) (image - degenerate), clipped and truncated to uint8."""
    level = per_image(level_B).float()
    tenths = images.float().mul_(10 + level).sub_(degenerate * level)
    return tenths.mul_(0.1).clamp_(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) as whole numbers in float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return ((red * 2989 + green * 5870 + blue * 1140) * 1e-4).floor_().unsqueeze(1)


def brightness(images: Tensor, level_B: Tensor) -> Tensor:
    """Blends with black."""
    level = per_image(level_B).float()
    return images.float().mul_(10 + level).mul_(0.1).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, level_B: Tensor, gray: Callable[[Tensor], Tensor] = _gray, blend: Blend = _blend) -> Tensor:
    """Blends with the grey image. Grey images are unchanged."""
    return images if images.shape[1] == 1 else blend(images, gray(images), level_B)


def contrast(images: Tensor, level_B: Tensor) -> Tensor:
    """Blends with the mean of the grey image."""
    mean = _gray(images).mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return _blend(images, mean, level_B)


def sharpness(images: Tensor, level_B: Tensor, blend: Blend = _blend) -> Tensor:
    """Blends with the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13. The outermost pixels are unchanged."""
    if min(images.shape[-2:]) < 3:
        return images
    whole = images.short()
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = whole[..., 1:-1, 1:-1]
    smooth = (box + 4 * inner).float().div_(13).round_()
    out = images.clone()
    out[..., 1:-1, 1:-1] = blend(inner, smooth, level_B)
    return out


def posterize(images: Tensor, level_B: Tensor) -> Tensor:
    """Keeps the upper 8 - round(4 level/9) bits."""
    dropped = (level_B * (4 / 9)).round().long()
    mask = 256 - torch.pow(2, dropped)
    return images & per_image(mask).to(torch.uint8)


def solarize(images: Tensor, level_B: Tensor, highest: int = 255) -> Tensor:
    """Inverts the pixels at or above `highest` (1 - level/9)."""
    threshold = torch.div(highest * (9 - level_B) + 8, 9, rounding_mode="floor")
    return torch.where(images >= per_image(threshold), 255 - images, images)


def autocontrast(images: Tensor, level_B: Tensor) -> Tensor:
    """Stretches each channel to 0 … 255."""
    return F.autocontrast(images)


def equalize(images: Tensor, level_B: Tensor) -> Tensor:
    """Equalises each channel's histogram."""
    return F.equalize(images)


def invert(images: Tensor, level_B: Tensor) -> Tensor:
    """255 - image."""
    return F.invert(images)


OPERATIONS: dict[str, Operation] = {
    function.__name__: function
    for function in (
        translate_x, translate_y, shear_y, rotate, brightness, color, contrast, sharpness,
        posterize, solarize, autocontrast, equalize, invert,
    )
}  # fmt: skip
SIGNED = frozenset(("translate_x", "translate_y", "shear_y", "rotate", "brightness", "color", "contrast", "sharpness"))
CIFAR10 = Policy(OPERATIONS, SIGNED)
SLOTS = 5  # draws of one image: the sub-policy, then for each operation whether it happens and its sign


@cache
def _tables(policy: Policy, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(25, 2) each: index of the operation, its probability, its level, whether the level has a sign."""
    names = list(policy.operations)
    operation = [[names.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY]
    probability = [[chance for _, chance, _ in pair] for pair in CIFAR10_POLICY]
    level = [[level for _, _, level in pair] for pair in CIFAR10_POLICY]
    signed = [[name in policy.signed for name, _, _ in pair] for pair in CIFAR10_POLICY]
    operation_table, probability_table, level_table, signed_table = (
        torch.tensor(table, device=device) for table in (operation, probability, level, signed)
    )
    return operation_table, probability_table, level_table, signed_table


def _apply(images: Tensor, operation_B: Tensor, level_B: Tensor, operations: Mapping[str, Operation]) -> Tensor:
    """Applies its operation to each image. The index after the last operation means no operation."""
    counts = operation_B.bincount(minlength=len(operations) + 1).tolist()
    order = operation_B.argsort()
    *groups, untouched = order.split(counts)
    parts = [
        function(images.index_select(0, rows), level_B[rows]) if len(rows) else images[:0]
        for function, rows in zip(operations.values(), groups, strict=True)
    ]
    return torch.cat([*parts, images.index_select(0, untouched)]).index_select(0, order.argsort())


def auto_augment(images: Tensor, seeds: Tensor, first_slot: int, policy: Policy = CIFAR10) -> Tensor:
    """Applies to each image a sub-policy of CIFAR-10, drawn from its seed.

    Args:
        images: uint8 (B, C, H, W) with 1 or 3 channels.
        seeds: int64 (B,) from `sample_seeds`.
        first_slot: first of the `SLOTS` draws from each seed.
        policy: implementation of the operations.

    Returns:
        uint8 (B, C, H, W).
    """
    operation, probability, level, signed = _tables(policy, images.device)
    policy_B = integers(seeds, first_slot, len(CIFAR10_POLICY))
    for stage in (0, 1):
        happens_B = uniform(seeds, first_slot + 1 + 2 * stage) < probability[policy_B, stage]
        minus_B = signed[policy_B, stage] & (uniform(seeds, first_slot + 2 + 2 * stage) < 0.5)
        level_B = torch.where(minus_B, -level[policy_B, stage], level[policy_B, stage])
        operation_B = torch.where(happens_B, operation[policy_B, stage], len(policy.operations))
        images = _apply(images, operation_B, level_B, policy.operations)
    return images
