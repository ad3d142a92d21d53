from __future__ import annotations

import random
import threading
from dataclasses import replace
from itertools import islice

import pytest
import torch

from disk_kd.data.augment import Augment, augment
from disk_kd.data.lighting import lighting
from disk_kd.data.loader import Batch, Loader
from disk_kd.data.seeds import sample_seeds
from disk_kd.data.split import Split
from disk_kd.errors import ConfigError, DataError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
AUGMENT = Augment(crop_padding=1, flip=True, auto_augment="cifar10", cutout=3)


def make_split(count: int = 50, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 5, tuple("abcde"), torch.arange(count) + 7)


def make_loader(split: Split | None = None, **options) -> Loader:
    settings = {"batch_size": 8, "mean": MEAN, "std": STD, "augment": AUGMENT, "group": 24}
    return Loader(make_split() if split is None else split, **settings | options)


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.ids, b.ids)
        assert a.view == b.view


def test_batches_are_the_normalised_augmented_samples():
    split, loader = make_split(), make_loader()
    (batch,) = islice(loader.batches(3), 1)
    at = batch.ids - 7
    assert torch.equal(batch.targets, split.targets[at])
    fill = torch.tensor([128, 102, 76], dtype=torch.uint8)
    pixels = augment(split.images[at], sample_seeds(batch.ids, 3, 0), AUGMENT, fill).double() / 255
    mean, std = (torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in (MEAN, STD))
    assert batch.images.dtype == torch.float32
    torch.testing.assert_close(batch.images.double(), (pixels - mean) / std, rtol=0, atol=1e-5)


def test_a_pass_holds_every_sample_once_less_the_dropped():
    loader = make_loader()
    ids = torch.cat([batch.ids for batch in loader.batches(0)])
    assert loader.steps_per_epoch == 6
    assert len(ids) == len(ids.unique()) == 48


@pytest.mark.parametrize("start", range(7))
def test_a_pass_entered_late_goes_on_as_if_never_left(start: int):
    whole = list(make_loader().batches(2))
    assert_equal(list(make_loader().batches(2, start)), whole[start:])


@pytest.mark.parametrize("group", [1, 8, 17, 8192])
def test_batches_do_not_depend_on_the_group(group: int):
    assert_equal(list(make_loader(group=group).batches(1)), list(make_loader().batches(1)))


def test_passes_and_seeds_differ_in_order_and_pixels():
    first = {tuple(next(make_loader(seed=seed).batches(p)).ids.tolist()) for seed in (0, 1) for p in (0, 1)}
    assert len(first) == 4
    plain = {"shuffle": False}
    pictures = [next(make_loader(seed=seed, **plain).batches(p)).images for seed in (0, 1) for p in (0, 1)]
    assert not any(torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_runs_of_several_seeds_share_the_views_of_an_augment_seed():
    pictures = [next(make_loader(seed=s, augment_seed=9, shuffle=False).batches(1)).images for s in (0, 1)]
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], next(make_loader(seed=0, shuffle=False).batches(1)).images)
    orders = [next(make_loader(seed=s, augment_seed=9).batches(1)).ids for s in (0, 1)]
    assert not torch.equal(*orders)


def test_views_come_round():
    loader = make_loader(views=2, shuffle=False)
    zero, one, two = (list(loader.batches(p)) for p in range(3))
    assert [batches[0].view for batches in (zero, one, two)] == [0, 1, 0]
    assert_equal(zero, two)
    assert not torch.equal(zero[0].images, one[0].images)
    assert_equal(list(loader.batches(0, view=3)), one)


def test_a_subset_meets_the_same_pixels():
    split = make_split()
    batches = list(make_loader(split).batches(0))
    ids, images = torch.cat([batch.ids for batch in batches]), torch.cat([batch.images for batch in batches])
    whole = dict(zip(ids.tolist(), images, strict=True))
    for batch in make_loader(split.subset(range(0, 50, 2)), batch_size=5).batches(0):
        for i, image in zip(batch.ids.tolist(), batch.images, strict=True):
            assert i not in whole or torch.equal(image, whole[i])


def test_evaluation_keeps_order_and_the_last_samples():
    loader = make_loader(shuffle=False, drop_last=False, augment=None)
    batches = list(loader.batches(0))
    assert loader.steps_per_epoch == len(batches) == 7
    assert torch.equal(torch.cat([batch.ids for batch in batches]), make_split().ids)
    assert len(batches[-1].ids) == 2


def test_a_small_split_is_one_batch():
    loader = make_loader(make_split(5))
    assert (loader.batch_size, loader.steps_per_epoch) == (5, 1)
    assert len(next(loader.batches(0)).ids) == 5


@pytest.mark.parametrize("options", [{}, {"shuffle": False, "drop_last": False}, {"augment": None, "group": 8}])
@pytest.mark.parametrize("start", [0, 3, 4, 6])
def test_batches_brought_in_the_background_are_the_same(options: dict, start: int):
    brought = make_loader(**options)
    brought.prefetches = True  # as for a split on another device
    assert_equal(list(brought.batches(2, start)), list(make_loader(**options).batches(2, start)))


def test_a_pass_left_early_leaves_no_thread():
    before = threading.active_count()
    loader = make_loader(group=8)
    loader.prefetches = True
    for batch in loader.batches(0):
        assert threading.active_count() == before + 1
        assert len(batch.ids) == 8
        break
    assert threading.active_count() == before


def test_a_split_on_the_wanted_device_is_not_brought():
    assert not make_loader(device="cpu").prefetches
    assert make_loader(device="cpu").device == make_loader().device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_for_an_accelerator_are_those_of_the_split_moved_there():
    split = make_split()
    brought, moved = make_loader(split, device="cuda"), make_loader(split.to("cuda"), device="cuda")
    assert (brought.prefetches, moved.prefetches) == (True, False)
    ours = list(brought.batches(1, 2))
    assert {part.device.type for batch in ours for part in batch[:3]} == {"cuda"}
    assert_equal(ours, list(moved.batches(1, 2)))


def test_batches_are_views_of_their_group():
    first, second, third = islice(make_loader().batches(0), 3)
    storage = first.images.untyped_storage().data_ptr()
    assert second.images.untyped_storage().data_ptr() == third.images.untyped_storage().data_ptr() == storage


def test_channels_last():
    plain, last = (next(make_loader(channels_last=flag).batches(0)).images for flag in (False, True))
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_cutout_is_zero_after_normalisation():
    split = make_split()
    white = Split(torch.full_like(split.images, 255), split.targets, split.class_names, split.ids)
    images = next(make_loader(white, augment=Augment(cutout=4)).batches(0)).images
    hidden = images.abs() < 0.5 / 255 / min(STD) + 1e-6
    assert hidden.flatten(1).any(1).all()
    assert (images[~hidden] > 1).all()


def test_cutout_can_be_black():
    white = replace(make_split(), images=torch.full_like(make_split().images, 255))
    images = next(make_loader(white, augment=Augment(cutout=4, cutout_fill=0)).batches(0)).images
    black = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1)
    hidden = (images - black).abs() < 1e-6
    assert hidden.flatten(1).any(1).all()
    assert (images[~hidden] > 1).all()


def test_lighting_shifts_the_colours_of_a_sample_in_a_view():
    plain, lit = make_loader(shuffle=False), make_loader(shuffle=False, augment=replace(AUGMENT, lighting=0.1))
    std = torch.tensor(STD).view(1, 3, 1, 1)
    shifts = []
    for view in (0, 1):
        before, after = next(plain.batches(view)), next(lit.batches(view))
        # no other draw moves, and the shift is that of the sample in [0, 1]
        seeds = sample_seeds(before.ids, view, 0)
        expected = lighting(seeds, 0.1, 10)[:, :, None, None].expand_as(before.images)
        torch.testing.assert_close((after.images - before.images).double() * std, expected, rtol=0, atol=1e-6)
        shifts.append(expected)
    assert (shifts[0] - shifts[1]).abs().flatten(1).amax(1).min() > 0


def test_lighting_does_not_depend_on_the_batch_and_leaves_evaluation():
    lit = {"augment": Augment(lighting=0.1)}
    assert_equal(list(make_loader(**lit, group=1).batches(1)), list(make_loader(**lit).batches(1)))
    small = next(make_loader(make_split().subset([3]), **lit, shuffle=False).batches(1))
    assert torch.equal(small.images[0], next(make_loader(**lit, shuffle=False).batches(1)).images[3])


def test_lighting_is_for_colour_images():
    with pytest.raises(ConfigError, match=r"augment\.lighting needs images of 3 channels, these have 1; give 0"):
        make_loader(make_split(channels=1), augment=Augment(lighting=0.1))


def test_three_channel_statistics_are_averaged_for_grey_images():
    ours = next(make_loader(make_split(channels=1)).batches(0)).images
    theirs = next(make_loader(make_split(channels=1), mean=(0.4,), std=(0.25,)).batches(0)).images
    torch.testing.assert_close(ours, theirs)


def test_no_global_random_state_is_touched():
    states = (torch.get_rng_state(), random.getstate())
    list(make_loader().batches(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_order_is_frozen():
    assert next(make_loader(seed=1).batches(4)).ids.tolist() == [21, 8, 42, 37, 23, 14, 10, 47]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is expected to be at least 1, got 0"),
        ({"views": 0}, "views is expected to be at least 1, got 0"),
        ({"mean": (0.5, 0.5)}, "mean is expected to have 3 values, one a channel, got 2"),
        ({"std": (0.5, 0.0, 0.5)}, "std is expected to be above 0"),
        ({"augment": Augment(cutout=10**30)}, r"augment.cutout is at most the side of the images, \d+ pixels"),
        ({"augment": Augment(crop_padding=50)}, r"augment.crop_padding is at most the side of the images, \d+ pixels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        make_loader(**options)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="at least one sample"):
        make_loader(make_split().subset([]))
