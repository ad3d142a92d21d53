"""The order of labelled and unlabelled samples if their share in a batch is given.

Labelled and unlabelled samples are two endless sequences of random orders: each goes through all its samples before it
begins again, whatever the epochs are. A batch takes its share from both. All is a function of the seed, the epoch and
the step, so that any epoch can start at any step.

Shapes: N samples, S steps of an epoch, B samples of a batch.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from disk_kd.data.seeds import LABELLED, UNLABELLED_ORDER, sample_seeds
from disk_kd.errors import ConfigError

_FINEST = 10_000
"""Shares are rounded to fractions with at most this denominator, so that counts are exact integers."""


class SharedOrder:
    """Rows of the batches of each epoch, of which a fixed share is unlabelled.

    After g batches of the run, floor(g B share) samples were unlabelled. In a batch they are spread evenly, so that
    each process and each micro-batch gets nearly the same number.

    Args:
        labelled: int64, rows of the labelled samples.
        unlabelled: int64, rows of the others.
        share: share of unlabelled samples in all batches, in [0, 1].
        batch_size: B.
        steps: S.
        seed: seed of the random orders.

    Raises:
        ConfigError: the share is outside [0, 1], or there are no samples of a kind that it asks for.
    """

    def __init__(
        self, labelled: Tensor, unlabelled: Tensor, *, share: float, batch_size: int, steps: int, seed: int
    ) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"data.unlabelled_share must be a share in [0, 1], or auto, not {share}")
        for kind, rows, asked in (("unlabelled", unlabelled, share > 0), ("labelled", labelled, share < 1)):
            if asked and not len(rows):
                raise ConfigError(
                    f"data.unlabelled_share={share:g} asks for {kind} images, but there are none; give"
                    " data.unlabelled_share=auto"
                )
        self.labelled, self.unlabelled = labelled, unlabelled
        self.share = Fraction(share).limit_denominator(_FINEST)
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

    def rows(self, epoch: int) -> Tensor:
        """int64 (S B,): the rows of the batches of an epoch, one after the other."""
        before = self._unlabelled_before(epoch)
        drawn_S1 = before.diff()[:, None]
        place_B = torch.arange(self.batch_size + 1)
        spread_SB = (place_B * drawn_S1).div(self.batch_size, rounding_mode="floor").diff(dim=1).bool().flatten()
        first, last = int(before[0]), int(before[-1])
        start = epoch * self.steps * self.batch_size
        rows = torch.empty(self.steps * self.batch_size, dtype=torch.int64)
        rows[spread_SB] = _drawn(self.unlabelled, first, last, UNLABELLED_ORDER, self.seed)
        rows[~spread_SB] = _drawn(self.labelled, start - first, start + len(rows) - last, LABELLED, self.seed)
        return rows

    def views(self, view: int) -> list[int]:
        """Number of the view of each batch, if the epoch is number `view` of those with its phase.

        It is the number of times that the samples of one kind were all seen before, of the kind that repeats more
        often. A sample that repeats within an epoch so gets another augmentation.
        """
        unlabelled = self._unlabelled_before(view)[:-1]
        seen = torch.arange(view * self.steps, (view + 1) * self.steps) * self.batch_size
        done = [counted // len(rows) for counted, rows in self._kinds(unlabelled, seen - unlabelled) if len(rows)]
        views: list[int] = torch.stack(done).amax(0).tolist()
        return views

    def _kinds(self, unlabelled: Tensor, labelled: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (unlabelled, self.unlabelled), (labelled, self.labelled)

    def _unlabelled_before(self, epoch: int) -> Tensor:
        """int64 (S + 1,): number of unlabelled samples before each batch of an epoch, and after the last one."""
        batches = torch.arange(epoch * self.steps, (epoch + 1) * self.steps + 1)
        return (batches * self.batch_size * self.share.numerator).div(self.share.denominator, rounding_mode="floor")


def _drawn(rows: Tensor, start: int, stop: int, draw: int, seed: int) -> Tensor:
    """Entries `start` to `stop` of the endless sequence of random orders of `rows`."""
    if start == stop:
        return rows[:0]
    count = len(rows)
    numbers = torch.arange(start // count, (stop - 1) // count + 1)
    seeds: list[int] = sample_seeds(numbers, draw, seed).tolist()
    orders = [torch.randperm(count, generator=torch.Generator().manual_seed(each)) for each in seeds]
    offset = start // count * count
    return rows[torch.cat(orders)[start - offset : stop - offset]]
