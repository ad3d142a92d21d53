from __future__ import annotations

import pytest
import torch

from disk_kd.data import Loader, Mix
from disk_kd.data.loader import Batch
from disk_kd.data.mix import mix
from disk_kd.data.split import Split
from disk_kd.errors import ConfigError


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one level each, ten times their class."""
    targets = torch.arange(count) % 3
    return 10.0 * targets.view(-1, 1, 1, 1).expand(count, 3, 8, 8).clone(), targets


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_mixes_labels_as_it_mixes_images(mode: str):
    images, targets = batch()
    mixed, shares = mix(images, targets, Mix(mixup=1.0, mode=mode), classes=3, seed=5)  # type: ignore[arg-type]
    assert shares.shape == (6, 3)
    assert shares.sum(1) == pytest.approx(torch.ones(6))
    levels = shares @ torch.tensor([0.0, 10.0, 20.0])
    assert mixed[:, 0, 0, 0] == pytest.approx(levels, abs=1e-4)
    assert ((shares > 0).sum(1) <= 2).all()


def test_cutmix_mixes_labels_by_area():
    images, targets = batch()
    mixed, shares = mix(images, targets, Mix(cutmix=1.0), classes=3, seed=2)
    for image, share, own in zip(mixed, shares, targets, strict=True):
        area = (image[0] == 10.0 * own).float().mean()
        if share[own] < 1:
            assert share[own].item() == pytest.approx(area.item(), abs=1e-6)
    assert (shares.max(1).values < 1).any()


def test_draws_hang_on_the_seed_alone():
    one, same, other = (mix(*batch(), Mix(mixup=1.0), classes=3, seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_nothing_is_mixed_unless_asked():
    assert not Mix().on
    assert not Mix(mixup=0.2, prob=0.0).on
    assert Mix(cutmix=1.0).on


def make_loader(**options: object) -> Loader:
    images, targets = batch(12)
    split = Split(images.to(torch.uint8).contiguous(), targets, ("a", "b", "c"), torch.arange(12))
    settings = {"batch_size": 4, "mean": (0.0,) * 3, "std": (1.0,) * 3, "mix": Mix(mixup=1.0)}
    return Loader(split, **(settings | options))  # type: ignore[arg-type]


def test_batches_are_mixed_and_a_pass_entered_late_goes_on():
    def shares(batches: list[Batch]) -> list[torch.Tensor]:
        return [batch.targets for batch in batches]

    whole = shares(list(make_loader().batches(1)))
    assert all(part.shape == (4, 3) for part in whole)
    assert all(map(torch.equal, shares(list(make_loader().batches(1, start=2))), whole[2:]))
    assert not torch.equal(whole[0], shares(list(make_loader().batches(0)))[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mix(mixup=-1.0), "data.mix.mixup is a finite alpha of at least 0, got -1.0"),
        (lambda: Mix(prob=2.0), r"data.mix.prob is a chance in \[0, 1\], got 2.0"),
        (
            lambda: make_loader(batch_size=3),
            "images are mixed in pairs: batch_size / 1 must be even, got batch_size 3",
        ),
        (lambda: make_loader(batch_size=6, ranks=2), "images are mixed in pairs"),
    ],
)
def test_what_cannot_be_mixed_is_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()
