"""The order of samples if the share of unlabelled ones in a batch is given, or if classes are balanced.

Labelled and unlabelled samples are two endless sequences of random orders: each goes through all its samples before it
begins again, whatever the epochs are. A batch takes its share from both. All is a function of the seed, the epoch and
the step, so that any epoch can start at any step. With balanced classes, the labelled sequence takes all classes in
turn, and each class has an endless sequence of its own.

Shapes: N samples, S steps of an epoch, B samples of a batch, K classes.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from disk_kd.data.seeds import CLASS_ORDER, CLASSES, LABELLED, UNLABELLED_ORDER, sample_seeds
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
        classes: int64, class of each labelled sample. The labelled samples of all batches are then balanced
            (`Balanced`). None: each labelled sample is drawn equally often.
        batch_size: B.
        steps: S.
        seed: seed of the random orders.

    Raises:
        ConfigError: the share is outside [0, 1], or there are no samples of a kind that it asks for.
    """

    def __init__(
        self,
        labelled: Tensor,
        unlabelled: Tensor,
        *,
        share: float | Fraction,
        batch_size: int,
        steps: int,
        seed: int,
        classes: Tensor | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"data.unlabelled_share must be a share in [0, 1], or auto, not {share}")
        for kind, rows, asked in (("unlabelled", unlabelled, share > 0), ("labelled", labelled, share < 1)):
            if asked and not len(rows):
                raise ConfigError(
                    f"data.unlabelled_share={share:g} asks for {kind} images, but there are none; give"
                    " data.unlabelled_share=auto"
                )
        if classes is not None and not len(labelled):
            raise ConfigError("data.sampling=balanced needs labelled images, but there are none; give shuffle")
        self.labelled: Sequence = Shuffled(labelled, LABELLED, seed)
        if classes is not None:
            self.labelled = Balanced(labelled, classes, seed)
        self.unlabelled = Shuffled(unlabelled, UNLABELLED_ORDER, seed)
        self.share = share if isinstance(share, Fraction) else Fraction(share).limit_denominator(_FINEST)
        self.batch_size, self.steps = batch_size, steps

    def rows(self, epoch: int) -> Tensor:
        """int64 (S B,): the rows of the batches of an epoch, one after the other."""
        before = self._unlabelled_before(epoch)
        drawn_S1 = before.diff()[:, None]
        place_B = torch.arange(self.batch_size + 1)
        spread_SB = (place_B * drawn_S1).div(self.batch_size, rounding_mode="floor").diff(dim=1).bool().flatten()
        first, last = int(before[0]), int(before[-1])
        start = epoch * self.steps * self.batch_size
        rows = torch.empty(self.steps * self.batch_size, dtype=torch.int64)
        rows[spread_SB] = self.unlabelled.entries(first, last)
        rows[~spread_SB] = self.labelled.entries(start - first, start + len(rows) - last)
        return rows

    def views(self, view: int) -> list[int]:
        """Number of the view of each batch, if the epoch is number `view` of those with its phase.

        It is the number of times that the samples of one kind were all seen before, of the kind that repeats most
        often: unlabelled, labelled, or of one class. A sample that repeats within an epoch so gets another
        augmentation.
        """
        unlabelled = self._unlabelled_before(view)[:-1]
        seen = torch.arange(view * self.steps, (view + 1) * self.steps) * self.batch_size
        done = torch.maximum(self.unlabelled.rounds(unlabelled), self.labelled.rounds(seen - unlabelled))
        views: list[int] = done.tolist()
        return views

    def _unlabelled_before(self, epoch: int) -> Tensor:
        """int64 (S + 1,): number of unlabelled samples before each batch of an epoch, and after the last one."""
        batches = torch.arange(epoch * self.steps, (epoch + 1) * self.steps + 1)
        return (batches * self.batch_size * self.share.numerator).div(self.share.denominator, rounding_mode="floor")


class Sequence(Protocol):
    """An endless sequence of rows."""

    def entries(self, start: int, stop: int) -> Tensor:
        """int64 (stop - start,): the rows from `start` to before `stop`."""

    def rounds(self, drawn: Tensor) -> Tensor:
        """How many times the samples that repeat most often were all seen, after these numbers of entries."""


class Shuffled:
    """Random orders of some rows, one after the other.

    Args:
        rows: int64.
        draw: which draw this is; one of the negative numbers in `seeds`.
        seed: seed of the random orders.
    """

    def __init__(self, rows: Tensor, draw: int, seed: int) -> None:
        self.rows, self.draw, self.seed = rows, draw, seed

    def entries(self, start: int, stop: int) -> Tensor:
        """int64 (stop - start,): the rows from `start` to before `stop`."""
        if start == stop:
            return self.rows[:0]
        count = len(self.rows)
        numbers = torch.arange(start // count, (stop - 1) // count + 1)
        seeds: list[int] = sample_seeds(numbers, self.draw, self.seed).tolist()
        orders = [torch.randperm(count, generator=torch.Generator().manual_seed(each)) for each in seeds]
        offset = start // count * count
        return self.rows[torch.cat(orders)[start - offset : stop - offset]]

    def rounds(self, drawn: Tensor) -> Tensor:
        """How many times all rows were seen after these numbers of entries."""
        return drawn // max(1, len(self.rows))


class Balanced:
    """Rows of which each class has the same share.

    The entries come in groups of K. Each group holds every class once, in a random order, so that the numbers of
    entries of two classes never differ by more than one. A class goes through all its samples, in a random order,
    before it begins again. Classes without a sample are left out.

    Args:
        rows: int64 (N,).
        classes: int64 (N,), the class of each row.
        seed: seed of the random orders.
    """

    def __init__(self, rows: Tensor, classes: Tensor, seed: int) -> None:
        self.rows = [rows[classes == label] for label in classes.unique()]
        self.seed = seed

    def entries(self, start: int, stop: int) -> Tensor:
        """int64 (stop - start,): the rows from `start` to before `stop`."""
        if start == stop:
            return torch.empty(0, dtype=torch.int64)
        first, last = start // len(self.rows), (stop - 1) // len(self.rows) + 1
        of_class = [self._of_class(number, first, last) for number in range(len(self.rows))]
        order = _orders(first, last, len(self.rows), CLASSES, self.seed)
        rows = torch.stack(of_class, dim=1).gather(1, order).flatten()
        return rows[start - first * len(self.rows) : stop - first * len(self.rows)]

    def rounds(self, drawn: Tensor) -> Tensor:
        """How many times all samples of the rarest class were seen after these numbers of entries."""
        return drawn // len(self.rows) // min(map(len, self.rows))

    def _of_class(self, number: int, start: int, stop: int) -> Tensor:
        """Entries `start` to `stop` of the sequence of a class."""
        rows = self.rows[number]
        first, last = start // len(rows), (stop - 1) // len(rows) + 1
        seed = int(sample_seeds(torch.tensor([number]), CLASS_ORDER, self.seed))
        order = _orders(first, last, len(rows), CLASS_ORDER, seed).flatten()
        return rows[order[start - first * len(rows) : stop - first * len(rows)]]


def _orders(start: int, stop: int, count: int, draw: int, seed: int) -> Tensor:
    """int64 (stop - start, count): random orders number `start` to `stop` of `count` things."""
    numbers = torch.arange(start * count, stop * count)
    return sample_seeds(numbers, draw, seed).view(-1, count).argsort(dim=1)
