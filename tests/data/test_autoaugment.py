from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms.v2 import AutoAugment
from torchvision.transforms.v2 import functional as F

from disk_kd.data.autoaugment import CIFAR10_POLICY, OPERATIONS, auto_augment
from disk_kd.data.seeds import integers, sample_seeds, uniform

SIGNED = ("translate_x", "translate_y", "shear_y", "rotate", "brightness", "color", "contrast", "sharpness")
# the next nearest row lies half a pixel away for some columns at these levels: float rounding decides
TIES = {"shear_y": (-6, -2, 2, 6)}
# share of pixels one grey level apart: torchvision blends in rounded floats, here tenths are exact
BLENDS = {"brightness": 0.005, "color": 0.02, "contrast": 0.005, "sharpness": 0.005}


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth pictures with noise, of many ranges of grey."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, channels, 5, 5), dtype=torch.uint8, generator=generator)
    smooth = F.resize(coarse, [height, width]).float()
    contrast = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    noise = torch.randn(smooth.shape, generator=generator) * 4
    return (smooth * contrast + 90 * (1 - contrast) + noise).clamp(0, 255).to(torch.uint8)


def torchvision_op(image: torch.Tensor, name: str, level: int) -> torch.Tensor:
    """One image by torchvision's functions, magnitudes as its AutoAugment gives them to ten levels."""
    height, width = image.shape[-2:]
    fill = [128.0] * image.shape[-3]
    affine = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": fill}
    factor = 1 + 0.1 * level
    match name:
        case "translate_x":
            return F.affine(image, **affine | {"translate": [int(150 / 331 * width * level / 9), 0]})
        case "translate_y":
            return F.affine(image, **affine | {"translate": [0, int(150 / 331 * height * level / 9)]})
        case "shear_y":
            degrees = math.degrees(math.atan(0.3 * level / 9))
            return F.affine(image, **affine | {"shear": [0.0, degrees], "center": [0, 0]})
        case "rotate":
            return F.rotate(image, 30 * level / 9, fill=fill)
        case "brightness":
            return F.adjust_brightness(image, factor)
        case "color":
            return F.adjust_saturation(image, factor)
        case "contrast":
            return F.adjust_contrast(image, factor)
        case "sharpness":
            return F.adjust_sharpness(image, factor)
        case "posterize":
            return F.posterize(image, 8 - round(level * 4 / 9))
        case "solarize":
            return F.solarize(image, 255 - 255 * level / 9)
        case "autocontrast":
            return F.autocontrast(image)
        case "equalize":
            return F.equalize(image)
        case "invert":
            return F.invert(image)
    raise AssertionError(name)


def differences(images: torch.Tensor, name: str) -> tuple[int, float]:
    """Largest difference from torchvision over levels and signs, and the share of unequal pixels."""
    levels = [m for m in (range(-9, 10) if name in SIGNED else range(10)) if m not in TIES.get(name, ())]
    worst, unequal = 0, []
    for level in levels:
        # neighbours in the batch have other levels, as in use
        batch_levels = torch.tensor([level if i % 2 == 0 else levels[i % len(levels)] for i in range(len(images))])
        ours = OPERATIONS[name](images, batch_levels)
        theirs = torch.stack(
            [torchvision_op(image, name, m) for image, m in zip(images, batch_levels.tolist(), strict=True)]
        )
        gap = (ours.int() - theirs.int()).abs()
        worst = max(worst, int(gap.max()))
        unequal.append(float((gap > 0).float().mean()))
    return worst, sum(unequal) / len(unequal)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 24, 40), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_torchvision_image_by_image(name: str, shape: tuple[int, int, int]):
    worst, unequal = differences(pictures(8, *shape), name)
    assert worst <= (1 if name in BLENDS else 0)
    assert unequal <= BLENDS.get(name, 0)


def test_policy_is_the_published_table():
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)._get_policies(AutoAugmentPolicy.CIFAR10)
    ours = [[(name.replace("_", ""), p, level) for name, p, level in pair] for pair in CIFAR10_POLICY]
    assert ours == [[(name.lower(), p, level or 0) for name, p, level in pair] for pair in theirs]


def by_torchvision(image: torch.Tensor, seed: torch.Tensor, first_slot: int) -> torch.Tensor:
    """One image through its sub-policy, step by step."""
    pair = CIFAR10_POLICY[int(integers(seed, first_slot, 25))]
    for stage, (name, probability, level) in enumerate(pair):
        if float(uniform(seed, first_slot + 1 + 2 * stage)) < probability:
            minus = name in SIGNED and float(uniform(seed, first_slot + 2 + 2 * stage)) < 0.5
            image = torchvision_op(image, name, -level if minus else level)
    return image


def test_batch_equals_one_image_at_a_time_by_torchvision():
    images = pictures(300)
    seeds = sample_seeds(torch.arange(300), 0, 0)
    ours = auto_augment(images, seeds, 5)
    theirs = torch.stack([by_torchvision(image, seed, 5) for image, seed in zip(images, seeds.split(1), strict=True)])
    gap = (ours.int() - theirs.int()).abs()
    assert (gap > 0).float().mean() < 0.005
    assert (gap.amax((1, 2, 3)) > 1).sum() <= 3  # one grey level may be stretched by a later operation
    assert ((images != ours).flatten(1).any(1)).float().mean() > 0.5


def test_every_sub_policy_is_drawn_equally_often():
    seeds = sample_seeds(torch.arange(25_000), 0, 0)
    counts = integers(seeds, 5, 25).bincount(minlength=25)
    assert 880 < int(counts.min()) <= int(counts.max()) < 1120


def test_image_does_not_depend_on_its_batch():
    images, seeds = pictures(64), sample_seeds(torch.arange(64), 0, 0)
    whole = auto_augment(images, seeds, 5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(auto_augment(images[order], seeds[order], 5), whole[order])
    for one in range(0, 64, 7):
        assert torch.equal(auto_augment(images[one : one + 1], seeds[one : one + 1], 5)[0], whole[one])


def test_input_is_left_as_it_is():
    images = pictures(40)
    before = images.clone()
    auto_augment(images, sample_seeds(torch.arange(40), 0, 0), 5)
    assert torch.equal(images, before)


def test_color_is_the_identity_on_grey_images():
    images = pictures(9, channels=1)
    assert torch.equal(OPERATIONS["color"](images, torch.arange(9)), images)


def test_sharpness_leaves_images_without_an_inside():
    images = pictures(4, height=2)
    assert torch.equal(OPERATIONS["sharpness"](images, torch.full((4,), 9)), images)
