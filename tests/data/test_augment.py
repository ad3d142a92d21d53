from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional

from disk_kd.data.augment import Augment, augment
from disk_kd.data.seeds import sample_seeds
from disk_kd.errors import ConfigError

PAPER = Augment(crop_padding=4, crop_fill=128, flip=True, auto_augment="cifar10", cutout=16)
RELEASED = replace(PAPER, auto_augment="cifar10-released", cutout_fill=0)


def noise(count: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeds_of(count: int, view: int = 0) -> torch.Tensor:
    return sample_seeds(torch.arange(count), view, 0)


def test_default_does_nothing():
    images = noise(4)
    assert torch.equal(augment(images, seeds_of(4), Augment()), images)


@pytest.mark.parametrize(
    "settings", [Augment(crop_padding=3), Augment(crop_padding=2, flip=True), PAPER, RELEASED], ids=str
)
def test_is_a_function_of_image_and_seed(settings: Augment):
    images, seeds = noise(50), seeds_of(50)
    whole = augment(images, seeds, settings)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(images[order], seeds[order], settings), whole[order])
    assert torch.equal(augment(images[7:8], seeds[7:8], settings)[0], whole[7])
    assert torch.equal(augment(images, seeds, settings), whole)
    assert not torch.equal(augment(images, seeds_of(50, view=1), settings), whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=str)
def test_keeps_shape_and_type_and_input(channels: int, settings: Augment):
    images = noise(20, channels, 8, 12)
    before = images.clone()
    result = augment(images, seeds_of(20), settings)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(images, before)


def test_crop_is_a_window_of_the_padded_image_and_every_window_occurs():
    images, padding = noise(600, 1, 6, 6), 2
    cropped = augment(images, seeds_of(600), Augment(crop_padding=padding, crop_fill=200))
    windows = functional.pad(images, (padding,) * 4, value=200).unfold(2, 6, 1).unfold(3, 6, 1).squeeze(1)
    matches = (windows == cropped.unsqueeze(1)).flatten(3).all(3).flatten(1)  # (600, 25)
    assert matches.any(1).all()
    counts = matches.sum(0)
    assert counts.min() > 5
    assert counts.max() < 50


def test_flip_mirrors_half_of_the_images():
    images = noise(1000, 1, 4, 4)
    flipped = augment(images, seeds_of(1000), Augment(flip=True))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 440 < int(mirrored.sum()) < 560


def test_crop_is_the_same_with_and_without_flip():
    images = noise(40)
    cropped = augment(images, seeds_of(40), Augment(crop_padding=4))
    both = augment(images, seeds_of(40), Augment(crop_padding=4, flip=True))
    same, mirrored = ((both == x).flatten(1).all(1) for x in (cropped, cropped.flip(3)))
    assert (same | mirrored).all()
    assert same.any()
    assert mirrored.any()


@pytest.mark.parametrize("size", [3, 4, 16])
def test_cutout_paints_one_clipped_square(size: int):
    images = torch.full((500, 3, 10, 12), 7, dtype=torch.uint8)
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8)
    cut = augment(images, seeds_of(500), Augment(cutout=size), fill)
    hidden = cut != 7
    rows, columns = hidden[:, 0].any(2), hidden[:, 0].any(1)
    assert torch.equal(hidden[:, 0], rows[:, :, None] & columns[:, None, :])
    assert torch.equal(hidden.all(1), hidden.any(1))
    for channel in range(3):
        assert cut[:, channel][hidden[:, channel]].unique().tolist() == [channel + 1]
    for side, length in ((rows, 10), (columns, 12)):
        heights = side.sum(1)
        assert int(heights.max()) == min(size, length)
        assert int(heights.min()) >= min(size // 2, length // 2)


def test_cutout_without_a_colour_takes_that_of_the_crop():
    cut = augment(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), seeds_of(3), Augment(crop_fill=50, cutout=4))
    assert cut.unique().tolist() == [0, 50]


@pytest.mark.parametrize("level", [0, 255])
def test_cutout_of_a_grey_level_ignores_the_mean_and_leaves_the_rest(level: int):
    images, mean = noise(20), torch.tensor([1, 2, 3], dtype=torch.uint8)
    plain = augment(images, seeds_of(20), Augment(cutout=8), mean)
    grey = augment(images, seeds_of(20), Augment(cutout=8, cutout_fill=level), mean)
    hidden = augment(torch.zeros_like(images), seeds_of(20), Augment(cutout=8, cutout_fill=255)) == 255
    assert (grey[hidden] == level).all()
    assert torch.equal(grey[~hidden], plain[~hidden])


def test_settings_at_their_defaults_are_the_facts_of_older_stores():
    older = ["crop_padding", "crop_fill", "flip", "auto_augment", "cutout"]
    assert list(PAPER.facts()) == older
    assert PAPER.facts() == {name: value for name, value in asdict(PAPER).items() if name in older}
    assert RELEASED.facts()["cutout_fill"] == 0
    assert Augment(lighting=0.1).facts()["lighting"] == 0.1


def test_no_global_random_state_is_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    augment(noise(10), seeds_of(10), PAPER)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "augment.crop_padding is a number of pixels >= 0, got -1"),
        ({"cutout": -2}, "augment.cutout is a number of pixels >= 0, got -2"),
        ({"crop_fill": 256}, "augment.crop_fill is a grey level 0 … 255, got 256"),
        ({"cutout_fill": 256}, "augment.cutout_fill is mean or a grey level 0 … 255, got 256"),
        ({"cutout_fill": "black"}, "augment.cutout_fill is mean or a grey level 0 … 255, got 'black'"),
        ({"lighting": -0.1}, "augment.lighting is a finite standard deviation >= 0, got -0.1"),
        ({"lighting": float("inf")}, "augment.lighting is a finite standard deviation >= 0, got inf"),
        ({"auto_augment": "cifar"}, "augment.auto_augment names a policy, got 'cifar'; nearest: cifar10"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Augment(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=str)
def test_accelerator_gives_the_same_pixels(settings: Augment):
    images, seeds = noise(500), seeds_of(500)
    on_device = augment(images.cuda(), seeds.cuda(), settings)
    assert torch.equal(on_device.cpu(), augment(images, seeds, settings))
