"""Work done one item ahead by a thread, and the groups of samples it brings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from disk_kd.data.prefetch import gather, one_ahead, prefetch
from disk_kd.data.split import Split

CPU = torch.device("cpu")


def make_split(count: int = 20) -> Split:
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count) % 5, tuple("abcde"), torch.arange(count) + 7)


def background() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("one_ahead")]


class Counting:
    """The numbers from 0 on, which says how far it was asked and tells when it reaches a number."""

    def __init__(self, stop: int = 1000) -> None:
        self.made = 0
        self.stop = stop
        self.reached = [threading.Event() for _ in range(stop + 1)]

    def __iter__(self) -> Iterator[int]:
        for number in range(self.stop):
            self.made = number + 1
            self.reached[self.made].set()
            yield number


def test_items_come_whole_and_in_order():
    assert list(one_ahead(range(100))) == list(range(100))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]
    assert not background()


def test_one_item_is_made_while_the_one_before_is_used_and_no_more():
    numbers = Counting()
    items = one_ahead(numbers)
    assert numbers.made == 0
    for expected in range(5):
        assert next(items) == expected
        assert numbers.reached[expected + 2].wait(10)
        assert not numbers.reached[expected + 3].wait(0.02)
    items.close()


def test_items_are_made_by_another_thread():
    (made_by,) = one_ahead(threading.get_ident() for _ in range(1))
    assert made_by != threading.get_ident()


def test_an_exception_comes_where_its_item_would_have():
    def two_then_error() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the disk is gone")

    items = one_ahead(two_then_error())
    assert list(islice(items, 2)) == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert not background()


def test_an_iterator_left_early_leaves_no_thread():
    for number in one_ahead(Counting()):
        if number == 3:
            break
    assert not background()
    items = one_ahead(Counting())
    next(items)
    assert len(background()) == 1
    items.close()
    assert not background()


def test_a_group_is_the_samples_at_its_rows():
    split, rows = make_split(), torch.tensor([4, 19, 0])
    images, targets, ids = gather(split, rows)
    assert torch.equal(images, split.images[rows])
    assert targets.tolist() == [4, 4, 0]
    assert ids.tolist() == [11, 26, 7]


def test_groups_are_brought_in_order():
    split, groups = make_split(), torch.randperm(20, generator=torch.Generator().manual_seed(1)).split(6)
    brought = list(prefetch(split, groups, CPU))
    assert len(brought) == 4
    for parts, rows in zip(brought, groups, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(parts, gather(split, rows), strict=True))


def test_a_row_that_is_not_there_is_an_error_in_the_consumer():
    with pytest.raises(IndexError):
        list(prefetch(make_split(), [torch.tensor([20])], CPU))
    assert not background()
