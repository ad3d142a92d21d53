"""Choice of samples: stratified subsets and label noise, as functions of the seed and the sample.

Shapes: N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from disk_kd.data.seeds import LABEL_NOISE, integers, sample_seeds


def stratified(targets: Tensor, ids: Tensor, count: int, draw: int, seed: int) -> Tensor:
    """Chooses samples so that each class keeps its proportion, up to less than one sample per class.

    The k-th sample of a class of n samples, in random order, has priority (k + 1/2) / n. The `count` samples with the
    smallest priority are chosen.

    Args:
        targets, ids: int64 (N,).
        count: number of samples to choose, at most N.
        draw: which draw this is; one of the negative numbers in `seeds`.
        seed: the dataset's seed.

    Returns:
        int64 (count,): positions in ascending order.
    """
    order = sample_seeds(ids, draw, seed).argsort()
    by_class = order[targets[order].argsort(stable=True)]
    sizes = targets.bincount()
    size = sizes.repeat_interleave(sizes).double()
    rank = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    priority = torch.empty_like(size)
    priority[by_class] = (rank + 0.5) / size
    # a stable sort over the random order breaks ties between classes of equal size at random
    return order[priority[order].argsort(stable=True)[:count]].sort().values


def set_aside(targets: Tensor, ids: Tensor, count: int, draw: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits positions 0 … N - 1 into the rest and the `count` positions that `stratified` chooses.

    Returns:
        int64 (N - count,) and (count,), both in ascending order.
    """
    chosen = stratified(targets, ids, count, draw, seed)
    left = torch.ones(len(targets), dtype=torch.bool)
    left[chosen] = False
    return left.nonzero().flatten(), chosen


def flip_labels(targets: Tensor, ids: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """Gives round(fraction N) samples another label, drawn uniformly from the other classes.

    A larger fraction flips the same samples and further ones.

    Returns:
        int64 (N,): a new tensor.
    """
    seeds = sample_seeds(ids, LABEL_NOISE, seed)
    chosen = seeds.argsort()[: round(fraction * len(targets))]
    noisy = targets.clone()
    noisy[chosen] = (targets[chosen] + 1 + integers(seeds[chosen], 0, num_classes - 1)) % num_classes
    return noisy
