from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as F

from disk_kd.data.autoaugment import CIFAR10_POLICY, SIGNED, auto_augment
from disk_kd.data.autoaugment_pillow import CIFAR10_PILLOW
from disk_kd.data.seeds import integers, sample_seeds, uniform

FILL = 128
MAGNITUDES = {
    "shear_y": np.linspace(0, 0.3, 10),
    "translate_x": np.linspace(0, 150 / 331, 10),
    "translate_y": np.linspace(0, 150 / 331, 10),
    "rotate": np.linspace(0, 30, 10),
    "posterize": np.round(np.linspace(8, 4, 10)).astype(int),
    "solarize": np.linspace(256, 0, 10),
}
SHAPES = [(3, 32, 32), (1, 32, 32), (3, 64, 64), (1, 24, 40), (3, 40, 24), (3, 7, 5), (3, 2, 2)]


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """By turns white noise, smooth pictures of many ranges of grey with noise, few levels, and one flat level."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    images = draw(count, channels, height, width)
    smooth = F.resize(draw(count, channels, 5, 5), [height, width], antialias=True).float()
    contrast = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    smooth = smooth * contrast + 90 * (1 - contrast) + 4 * torch.randn(smooth.shape, generator=generator)
    images[1::4] = smooth.clamp(0, 255).to(torch.uint8)[1::4]
    images[2::4] = images[2::4] // 100 * 100
    images[3::8] = draw(len(images[3::8]), channels, 1, 1)
    return images


def to_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def from_pillow(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def pillow_op(image: Image.Image, name: str, level: int) -> Image.Image:
    """One image by Pillow's functions; a translation is to the right or down for positive levels."""
    sign = -1 if level < 0 else 1
    magnitude = sign * MAGNITUDES[name][abs(level)] if name in MAGNITUDES else 0.0
    fill = FILL if image.mode == "L" else (FILL,) * 3
    factor = 1 + sign * np.linspace(0, 0.9, 10)[abs(level)]
    affine = Image.Transform.AFFINE
    match name:
        case "shear_y":
            bicubic = Image.Resampling.BICUBIC
            return image.transform(image.size, affine, (1, 0, 0, magnitude, 1, 0), bicubic, fillcolor=fill)
        case "translate_x":
            return image.transform(image.size, affine, (1, 0, -magnitude * image.width, 0, 1, 0), fillcolor=fill)
        case "translate_y":
            return image.transform(image.size, affine, (1, 0, 0, 0, 1, -magnitude * image.height), fillcolor=fill)
        case "rotate":
            turned = image.convert("RGBA").rotate(magnitude)
            return Image.composite(turned, Image.new("RGBA", turned.size, (FILL,) * 4), turned).convert(image.mode)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(factor)
        case "color":
            return ImageEnhance.Color(image).enhance(factor)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(factor)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(factor)
        case "posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "solarize":
            return ImageOps.solarize(image, magnitude)
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
    raise AssertionError(name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CIFAR10_PILLOW.operations)
def test_operation_equals_pillow_at_every_level_and_sign(name: str, shape: tuple[int, int, int]):
    images = pictures(16, *shape)
    levels = list(range(-9, 10) if name in SIGNED else range(10))
    for turn in range(len(levels)):
        # neighbours in the batch have other levels, as in use
        batch_levels = [levels[(turn + at) % len(levels)] for at in range(len(images))]
        ours = CIFAR10_PILLOW.operations[name](images, torch.tensor(batch_levels))
        for image, level, result in zip(images, batch_levels, ours, strict=True):
            assert torch.equal(result, from_pillow(pillow_op(to_pillow(image), name, level))), level


def by_pillow(image: torch.Tensor, seed: torch.Tensor, first_slot: int) -> torch.Tensor:
    """One image through its sub-policy, step by step; only turns have one direction."""
    picture = to_pillow(image)
    for stage, (name, probability, level) in enumerate(CIFAR10_POLICY[int(integers(seed, first_slot, 25))]):
        if float(uniform(seed, first_slot + 1 + 2 * stage)) < probability:
            minus = name in SIGNED and name != "rotate" and float(uniform(seed, first_slot + 2 + 2 * stage)) < 0.5
            picture = pillow_op(picture, name, -level if minus else level)
    return from_pillow(picture)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_batch_equals_one_image_at_a_time_by_pillow(shape: tuple[int, int, int]):
    images, seeds = pictures(400, *shape), sample_seeds(torch.arange(400), 0, 0)
    ours = auto_augment(images, seeds, 5, CIFAR10_PILLOW)
    theirs = torch.stack([by_pillow(image, seed, 5) for image, seed in zip(images, seeds.split(1), strict=True)])
    assert torch.equal(ours, theirs)
    assert ((images != ours).flatten(1).any(1)).float().mean() > 0.5
