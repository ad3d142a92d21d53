"""AutoAugment's CIFAR-10 policy with the pixels of Pillow, as the DiSK authors' release trains with.

The sub-policies are those of `autoaugment`. The operations differ from torchvision's in this:
    shear        bicubic instead of nearest neighbour;
    translation  rounded to the nearest whole pixel instead of towards zero;
    rotation     counter-clockwise only;
    blends       truncated from the sum; the mean of `contrast` is a whole number;
    solarize     a level is a share of 256 instead of 255;
    autocontrast truncated instead of rounded in float32.

Every operation equals Pillow's on x86-64 pixel by pixel, because the numbers of Pillow's C code are computed here in
the same precision and order. On processors whose compilers fuse a multiplication with an addition (arm64), Pillow
itself may give some pixels of a shear one grey level less or more.

Shapes: B images, C channels (1 or 3), H rows, W columns.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from disk_kd.data.autoaugment import (
    FILL,
    OPERATIONS,
    SIGNED,
    Policy,
    color,
    grid,
    per_image,
    sharpness,
    solarize,
    translate_x,
    translate_y,
)
from disk_kd.data.remap import remap


def _shift(level_B: Tensor, size: int) -> Tensor:
    """Whole pixels of a translation, (B, 1, 1): level 9 is 150/331 of the side, rounded to the nearest."""
    return torch.div(level_B * (300 * size) + 9 * 331, 2 * 9 * 331, rounding_mode="floor").view(-1, 1, 1)


def shear_y(images: Tensor, level_B: Tensor) -> Tensor:
    """Shears along y about the left upper corner by 0.3 level/9 pixels a pixel, bicubic (a = -1).

    Columns move as a whole. The interpolation uses four rows v1 … v4 and the distance d in [0, 1) from v2:
        v2 + d (v3 - v1 + d (2 (v1 - v2) + v3 - v4 + d (v2 - v1 + v4 - v3))).
    """
    height = images.shape[-2]
    slopes = torch.tensor([0.3 / 9 * level for level in range(-9, 10)], dtype=torch.float64, device=images.device)
    rows, columns = grid(images)
    source = slopes[level_B + 9].view(-1, 1, 1) * (columns + 0.5) + (rows + 0.5)
    first = (source - 0.5).floor()
    distance = (source - 0.5 - first).unsqueeze(1)
    v1, v2, v3, v4 = (
        remap(images, (first.long() + tap).clamp(0, height - 1), columns, FILL).double() for tap in (-1, 0, 1, 2)
    )
    sheared = (v2 - v1 + v4 - v3).mul_(distance).add_(2 * (v1 - v2) + v3 - v4)
    sheared = sheared.mul_(distance).add_(v3 - v1).mul_(distance).add_(v2)
    inside = ((source >= 0) & (source < height)).unsqueeze(1)
    return torch.where(inside, sheared.clamp_(0, 255), FILL).to(torch.uint8)


def _fixed_rotation(level: int, height: int, width: int) -> list[int]:
    """The affine map of an output pixel to its source, x' = a0 x + a1 y + a2, y' = a3 x + a4 y + a5, in 1/65536 px."""
    angle = -math.radians(30 / 9 * level)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    centre_x, centre_y = width / 2, height / 2
    left = cosine * -centre_x + sine * -centre_y + centre_x
    top = -sine * -centre_x + cosine * -centre_y + centre_y
    exact = (cosine, sine, left + 0.5 * cosine + 0.5 * sine, -sine, cosine, top - 0.5 * sine + 0.5 * cosine)
    return [math.floor(number * 65536 + 0.5) for number in exact]


def rotate(images: Tensor, level_B: Tensor) -> Tensor:
    """Rotates about the centre by 30 level/9 degrees, counter-clockwise for positive levels; nearest neighbour."""
    height, width = images.shape[-2:]
    table = [_fixed_rotation(level, height, width) for level in range(-9, 10)]
    a0, a1, a2, a3, a4, a5 = torch.tensor(table, device=images.device)[level_B + 9].T.reshape(6, -1, 1, 1)
    rows, columns = grid(images)
    return remap(images, (a3 * columns + a4 * rows + a5) >> 16, (a0 * columns + a1 * rows + a2) >> 16, FILL)


def _blend(images: Tensor, degenerate: Tensor, level_B: Tensor) -> Tensor:
    """degenerate + (1 + level/10) (image - degenerate) in float32, clipped and truncated to uint8."""
    factors = torch.tensor([(10 + level) / 10 for level in range(-9, 10)], dtype=torch.float32, device=images.device)
    blended = images.float().sub_(degenerate).mul_(per_image(factors[level_B + 9])).add_(degenerate)
    return blended.clamp_(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W), weights in 1/65536, as whole numbers in float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor_().unsqueeze(1)


def brightness(images: Tensor, level_B: Tensor) -> Tensor:
    """Blends with black."""
    return _blend(images, images.new_zeros((), dtype=torch.float32), level_B)


def contrast(images: Tensor, level_B: Tensor) -> Tensor:
    """Blends with the mean of the grey image, rounded to a whole number."""
    gray = _gray(images)
    pixels = gray[0].numel()
    doubled = 2 * gray.long().sum((1, 2, 3), keepdim=True)
    return _blend(images, torch.div(doubled + pixels, 2 * pixels, rounding_mode="floor").float(), level_B)


def autocontrast(images: Tensor, level_B: Tensor) -> Tensor:
    """Stretches each channel to 0 … 255. A channel with a single grey level is unchanged."""
    scales = torch.tensor([1.0] + [255 / span for span in range(1, 256)], dtype=torch.float64, device=images.device)
    lowest, highest = (extreme.long() for extreme in images.flatten(2).aminmax(dim=2))
    scale = scales[highest - lowest][..., None, None]
    offset = (lowest * (highest > lowest))[..., None, None] * scale
    return images.double().mul_(scale).sub_(offset).clamp_(0, 255).to(torch.uint8)


CIFAR10_PILLOW = Policy(
    OPERATIONS
    | {
        "translate_x": partial(translate_x, shift=_shift),
        "translate_y": partial(translate_y, shift=_shift),
        "shear_y": shear_y,
        "rotate": rotate,
        "brightness": brightness,
        "color": partial(color, gray=_gray, blend=_blend),
        "contrast": contrast,
        "sharpness": partial(sharpness, blend=_blend),
        "solarize": partial(solarize, highest=256),
        "autocontrast": autocontrast,
    },
    SIGNED - {"rotate"},
)
