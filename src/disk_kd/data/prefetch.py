"""Groups of samples copied from the host to an accelerator while it works on the previous group.

Shapes: n samples of a group, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from disk_kd.data.split import Split

Item = TypeVar("Item")
Parts = tuple[Tensor, Tensor, Tensor]
"""Images (n, C, H, W), targets (n,) and ids (n,) of a group."""


def gather(split: Split, rows: Tensor, pinned: bool = False) -> Parts:
    """The samples at the given positions, on the split's device.

    Args:
        rows: int64 (n,), on the split's device.
        pinned: copy them to pinned memory, from which an accelerator can copy asynchronously.
    """
    images, targets, ids = (_select(part, rows, pinned) for part in (split.images, split.targets, split.ids))
    return images, targets, ids


def prefetch(split: Split, groups: Iterable[Tensor], device: torch.device) -> Iterator[Parts]:
    """The samples of each group on another device, gathered in the background.

    Args:
        groups: positions in the split, int64 (n,), for each group.
        device: target device.

    Raises:
        Exception: any error of gathering, raised at its group.
    """
    pinned = device.type == "cuda" and split.images.device.type == "cpu"
    for parts in one_ahead(gather(split, rows, pinned) for rows in groups):
        images, targets, ids = (part.to(device, non_blocking=pinned) for part in parts)
        yield images, targets, ids


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in order. A thread makes each item while the previous one is used.

    An exception is raised at its item. The thread ends with the iterator, also if the iterator is left early.
    """
    source = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="one_ahead") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item


def _select(part: Tensor, rows: Tensor, pinned: bool) -> Tensor:
    out = torch.empty((len(rows), *part.shape[1:]), dtype=part.dtype, device=part.device, pin_memory=pinned)
    return torch.index_select(part, 0, rows, out=out)
