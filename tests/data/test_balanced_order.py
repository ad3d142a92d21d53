"""Balanced sampling: every class equally often, the same for any number of processes, from any step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from disk_kd.data import Loader, Split
from disk_kd.data.order import SharedOrder
from disk_kd.errors import ConfigError
from disk_kd.support import UNLABELLED

SIZES = (14, 4, 2)
TARGETS = torch.cat([torch.full((count,), label) for label, count in enumerate(SIZES)])


def order(targets: Tensor = TARGETS, **options: Any) -> SharedOrder:
    settings: dict[str, Any] = {"share": 0, "batch_size": 5, "steps": 4, "seed": 3} | options
    rows = torch.arange(len(targets))
    return SharedOrder(rows, rows[:0] + 100, classes=targets, **settings)


def loader(targets: Tensor = TARGETS, **options: Any) -> Loader:
    images = torch.arange(len(targets), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    split = Split(images, targets, class_names=tuple("abc"), ids=torch.arange(len(targets)))
    settings: dict[str, Any] = {"batch_size": 4, "mean": (0.0,), "std": (1.0,), "balanced": True} | options
    return Loader(split, **settings)


def test_classes_differ_by_one_image_at_most_wherever_the_run_is() -> None:
    run = torch.cat([order().rows(epoch) for epoch in range(6)])
    counts = torch.nn.functional.one_hot(TARGETS[run], 3).cumsum(0)
    assert int((counts.amax(1) - counts.amin(1)).max()) == 1
    assert counts[-1].tolist() == [40, 40, 40]


def test_a_class_goes_through_all_its_images_before_it_begins_again() -> None:
    run = torch.cat([order().rows(epoch) for epoch in range(6)])
    for label, size in enumerate(SIZES):
        own = run[TARGETS[run] == label]
        rounds = [sorted(part.tolist()) for part in own.split(size) if len(part) == size]
        assert len(rounds) == 40 // size
        assert all(part == (label == TARGETS).nonzero().flatten().tolist() for part in rounds)
        assert len({tuple(part.tolist()) for part in own.split(size)}) > 1, "the order is always the same"


def test_a_seed_and_an_epoch_are_one_order() -> None:
    assert torch.equal(order().rows(5), order().rows(5))
    assert not torch.equal(order().rows(5), order().rows(4))
    assert not torch.equal(order().rows(5), order(seed=4).rows(5))


def test_the_view_changes_when_the_rarest_class_begins_again() -> None:
    # Each class has an entry in three; class 2 begins again after 2 of its own, so after 6 entries.
    views = [view for epoch in range(2) for view in order().views(epoch)]
    assert views == [step * 5 // 3 // 2 for step in range(8)]


def test_the_batches_are_those_of_any_number_of_processes_from_any_step() -> None:
    whole = list(loader().batches(2))
    assert len(whole) == 5
    parts = zip(*(loader(rank=rank, ranks=2).batches(2) for rank in range(2)), strict=True)
    for one, pair in zip(whole, parts, strict=True):
        assert torch.equal(one.ids, torch.cat([part.ids for part in pair]))
    for one, again in zip(whole[3:], loader().batches(2, start=3), strict=True):
        assert torch.equal(one.ids, again.ids)
        assert one.view == again.view


@pytest.mark.parametrize(("share", "expected"), [(None, 60), (0.5, 80)])
def test_unlabelled_images_keep_their_share(share: float | None, expected: int) -> None:
    targets = torch.cat([TARGETS, torch.full((12,), UNLABELLED)])
    both = loader(targets, unlabelled_share=share, batch_size=32)
    seen = Counter(label for epoch in range(5) for batch in both.batches(epoch) for label in batch.targets.tolist())
    assert seen[UNLABELLED] == expected
    assert max(seen[label] for label in range(3)) - min(seen[label] for label in range(3)) <= 1
    assert sum(both.unlabelled_in(epoch) for epoch in range(5)) == expected


def test_a_class_without_images_is_left_out_and_no_labels_at_all_are_refused() -> None:
    without = loader(TARGETS[TARGETS != 1], batch_size=4)
    assert {label for batch in without.batches(0) for label in batch.targets.tolist()} == {0, 2}
    with pytest.raises(ConfigError, match=r"data\.sampling=balanced needs labelled images, but there are none"):
        loader(torch.full((8,), UNLABELLED))
