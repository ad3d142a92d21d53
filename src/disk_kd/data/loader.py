"""Batches of a split: shuffled, augmented and normalised, on the device.

Images are prepared in groups of many batches, ahead of the steps: with a few large kernels instead of many small
ones, and without waiting for the host. A split on another device is copied group by group in the background. A
streamed split is read batch by batch.

Shapes: B samples of a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from disk_kd.data.augment import Augment, augment, lighting_shift
from disk_kd.data.dataset import AnySplit
from disk_kd.data.mix import Mix, mix
from disk_kd.data.order import SharedOrder
from disk_kd.data.prefetch import Parts, gather, prefetch
from disk_kd.data.seeds import MIX, SHUFFLE, sample_seeds
from disk_kd.data.split import Split
from disk_kd.data.stream import Stream
from disk_kd.errors import ConfigError, DataError
from disk_kd.support import UNLABELLED

_GROUP, _CPU_GROUP = 8192, 2048
_GROUP_BYTES = 256 * 2**20


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        images: float32 (B, C, H, W), normalised.
        targets: int64 (B,), -100 for an image without a label; for mixed images float32 (B, K) label probabilities.
        ids: int64 (B,): numbers of the samples in their original split.
        view: number of the images' augmented view.
        unlabelled: number of images without a label in the whole batch, of all processes.
    """

    images: Tensor
    targets: Tensor
    ids: Tensor
    view: int
    unlabelled: int = 0


class Loader:
    """Epochs over a split. Iteration can start at any step of any epoch.

    A batch depends only on the split, the settings, the seed, the epoch and the step. Global random states are not
    used. The batches do not depend on the number of processes: together these get the batches that one process would
    get.

    Args:
        split: the samples, in memory or streamed.
        batch_size: samples in a step. If `drop_last` is set and the split is smaller, the whole split.
        mean, std: normalisation of each channel, for pixels in [0, 1]. Three values are averaged for grey images.
        augment: augmentation, applied after timm's augmentation of a streamed split; None: none. Cutout with the mean
            colour uses `mean`, to within half a grey level. Lighting is added in float32 to the normalised image.
        mix: mixing of pairs of images of a batch, or of this rank's part of it.
        seed: seed of the order, and of the augmentation unless `augment_seed` is given.
        augment_seed: seed of the augmentation. Runs with different seeds can then share the same views.
        views: number of different augmented views. Epoch p has view p modulo `views`. None: a new view in every epoch.
        shuffle: use a new random order in every epoch, instead of the split's order.
        unlabelled_share: share of unlabelled samples in the batches of a shuffled epoch (`SharedOrder`). An epoch has
            as many samples as the split, whatever the share is, so that samples repeat within an epoch. None: every
            sample once in an epoch.
        balanced: draw each class equally often in a shuffled epoch (`disk_kd.data.order.Balanced`). Unlabelled samples
            keep their share.
        drop_last: drop the last batch if it is smaller.
        stand_in: with augmentation, replace an unreadable file that may be skipped by the next file, so that batches
            keep their size; False skips it, as without augmentation.
        channels_last: memory format of the images.
        group: maximum number of samples prepared at a time; None: 2,048 on a CPU, whose caches are small; else 8,192,
            or fewer if they would take more than 256 MiB.
        rank, ranks: number of this process and of all processes. Each gets its part of every batch; `batch_size` is the
            size of the full batch.
        device: device of the batches; None: device of the split. Samples on another device are gathered as bytes, one
            group ahead, by a thread (for CUDA into pinned memory). The batches are the same.

    Raises:
        ConfigError: a size is below one; a mean, std, lighting, padding or cutout does not fit the images; images
            without labels are mixed; or there are no samples for `unlabelled_share`, or none to balance.
        DataError: the split is empty.
    """

    def __init__(
        self,
        split: AnySplit,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None = None,
        mix: Mix | None = None,
        seed: int = 0,
        augment_seed: int | None = None,
        views: int | None = None,
        shuffle: bool = True,
        unlabelled_share: float | None = None,
        balanced: bool = False,
        drop_last: bool = True,
        stand_in: bool = True,
        channels_last: bool = False,
        group: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        if not len(split):
            raise DataError("a loader needs at least one sample, the split is empty")
        for name, value in (("batch_size", batch_size), ("views", 1 if views is None else views)):
            if value < 1:
                raise ConfigError(f"{name} is expected to be at least 1, got {value}")
        self.split = split
        # The device of a tensor has an index; "cuda" has none.
        self.device = split.device if device is None else torch.empty(0, device=device).device
        self.prefetches = self.device != split.device
        self.batch_size = min(batch_size, len(split))
        if drop_last and self.batch_size % ranks:
            raise ConfigError(f"batch_size {self.batch_size} must be divisible by the number of processes, {ranks}")
        self.mix = mix if mix is not None and mix.on else None
        if self.mix is not None and (not drop_last or self.batch_size // ranks % 2):
            raise ConfigError(
                f"images are mixed in pairs: batch_size / {ranks} must be even, got batch_size {self.batch_size}"
            )
        self.rank, self.ranks = rank, ranks
        self.augment = augment
        self.seed = seed
        self.augment_seed = seed if augment_seed is None else augment_seed
        self.views = views
        self.shuffle = shuffle
        full, rest = divmod(len(split), self.batch_size)
        self.steps_per_epoch = full + (rest > 0 and not drop_last)
        self._unlabelled = (split.targets == UNLABELLED).cpu() if split.unlabelled else None
        if self.mix is not None and self._unlabelled is not None:
            raise ConfigError("data.mix mixes labels, but some images have none; give data.mix.mixup=0 and cutmix=0")
        self._shared: SharedOrder | None = None
        if shuffle and (balanced or unlabelled_share is not None):
            self._shared = self._shared_order(unlabelled_share, balanced)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        group = group or (_CPU_GROUP if self.device.type == "cpu" else _GROUP)
        in_group = min(group, _GROUP_BYTES // (4 * math.prod(split.shape)))
        self._stream: Stream | None = None
        if not isinstance(split, Split):
            train, pinned = augment is not None, self.device.type == "cuda"
            self._stream = Stream(split, train=train, stand_in=stand_in, seed=self.augment_seed, pinned=pinned)
            in_group = 0
        self._group_steps = max(1, in_group * ranks // self.batch_size)
        mean_C, std_C = (self._per_channel(name, value) for name, value in (("mean", mean), ("std", std)))
        if not bool((std_C > 0).all()):
            raise ConfigError(f"std is expected to be above 0, got {tuple(std)}")
        for step in ("crop_padding", "cutout"):
            pixels, side = getattr(augment, step, 0), max(split.shape[1:])
            if pixels > side:
                raise ConfigError(f"augment.{step} is at most the side of the images, {side} pixels, got {pixels}")
        self._scale, self._shift = (x.view(1, -1, 1, 1) for x in (1 / (255 * std_C), -mean_C / std_C))
        self._std_C, self._mean_colour = std_C, (mean_C * 255).round().clamp(0, 255).to(torch.uint8)
        if augment is not None and augment.lighting and len(std_C) != 3:
            raise ConfigError(f"augment.lighting needs images of 3 channels, these have {len(std_C)}; give 0")

    def _per_channel(self, name: str, values: Sequence[float]) -> Tensor:
        channels = self.split.shape[0]
        if len(values) not in ((1, 3) if channels == 1 else (channels,)):
            raise ConfigError(f"{name} is expected to have {channels} values, one a channel, got {len(values)}")
        tensor = torch.tensor(values, dtype=torch.float32, device=self.device)
        return tensor.mean(0, keepdim=True) if channels == 1 else tensor

    def batches(self, epoch: int, start: int = 0, view: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on, the same as in a full epoch.

        Args:
            epoch: number of the epoch, from 0. It determines the order.
            start: number of steps to skip. Only the group with the first batch is computed for them.
            view: number of the augmentation, from 0, modulo `views`; None: the epoch.
        """
        order = self._order(epoch)
        unlabelled = self._unlabelled_of_steps(order)
        views = self._views(epoch if view is None else view)
        groups = [group for group in self._step_groups(views) if group.stop > start]
        order = order.to(self.split.device)
        each = len(self._own_part(order[: self.batch_size]))
        rows = (self._own_rows(order, group) for group in groups)
        parts_of_groups = self._groups(rows, [views[group.start] for group in groups])
        for group, parts in zip(groups, parts_of_groups, strict=True):
            prepared = self._prepare(parts, views[group.start])
            for step in range(max(group.start, start), group.stop):
                at = (step - group.start) * each
                images, targets, ids = (part[at : at + each] for part in prepared)
                if self.mix is not None:
                    drawn = torch.tensor([epoch * self.steps_per_epoch + step])
                    seed = int(sample_seeds(drawn, MIX, self.seed))
                    images, targets = mix(images, targets, self.mix, len(self.split.class_names), seed)
                yield Batch(images, targets, ids, views[step], unlabelled[step])

    def unlabelled_in(self, epoch: int) -> int:
        """Number of unlabelled images in an epoch."""
        return sum(self._unlabelled_of_steps(self._order(epoch)))

    def _shared_order(self, share: float | None, balanced: bool) -> SharedOrder:
        without = self._unlabelled if self._unlabelled is not None else torch.zeros(len(self.split), dtype=torch.bool)
        labelled, unlabelled = (kind.nonzero().flatten() for kind in (~without, without))
        return SharedOrder(
            labelled,
            unlabelled,
            share=Fraction(len(unlabelled), len(self.split)) if share is None else share,
            batch_size=self.batch_size,
            steps=self.steps_per_epoch,
            seed=self.seed,
            classes=self.split.targets.cpu()[labelled] if balanced else None,
        )

    def _unlabelled_of_steps(self, order: Tensor) -> list[int]:
        """Number of unlabelled images in the batch of each step."""
        if self._unlabelled is None:
            return [0] * self.steps_per_epoch
        without = self._unlabelled[order // self._repeats][: self.steps_per_epoch * self.batch_size]
        counts: list[int] = torch.stack([batch.sum() for batch in without.split(self.batch_size)]).tolist()
        return counts

    def _views(self, view: int) -> list[int]:
        """Number of the view of each step."""
        views = [view] * self.steps_per_epoch if self._shared is None else self._shared.views(view)
        return views if self.views is None else [each % self.views for each in views]

    def _step_groups(self, views: Sequence[int]) -> list[range]:
        """The steps of each group. A group has one view."""
        groups, first = [], 0
        for step in range(1, len(views) + 1):
            if step == len(views) or step - first == self._group_steps or views[step] != views[first]:
                groups.append(range(first, step))
                first = step
        return groups

    def _own_rows(self, order: Tensor, steps: range) -> Tensor:
        """This process's rows of the batches of a group."""
        rows = order[steps.start * self.batch_size : steps.stop * self.batch_size]
        return rows if self.ranks == 1 else torch.cat([self._own_part(batch) for batch in rows.split(self.batch_size)])

    def _own_part(self, batch: Tensor) -> Tensor:
        return batch.tensor_split(self.ranks)[self.rank]

    def _order(self, epoch: int) -> Tensor:
        """Rows in the order of an epoch, on the host; for a stream with repeats: row * repeats + repetition."""
        count, repeats = len(self.split), self._repeats
        order = torch.arange(count)
        if not self.shuffle:
            return order * repeats
        if self._shared is not None:
            drawn = self._shared.rows(epoch)[:count]
        else:
            seed = int(sample_seeds(torch.tensor([epoch]), SHUFFLE, self.seed))
            drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        order = order[: len(drawn)]
        return drawn if repeats == 1 else drawn[order // repeats] * repeats + order % repeats

    @property
    def _repeats(self) -> int:
        """Number of copies of a sample in a batch."""
        return 1 if self._stream is None else self._stream.repeats

    def _groups(self, rows: Iterable[Tensor], views: Iterable[int]) -> Iterator[Parts]:
        """Images, targets and ids of the rows of each group, on the loader's device."""
        if isinstance(self.split, Split):
            if self.prefetches:
                yield from prefetch(self.split, rows, self.device)
            else:
                yield from (gather(self.split, group) for group in rows)
            return
        assert self._stream is not None
        for pixels, at, read in self._stream.groups(rows, views):
            parts = pixels, self.split.targets[read], self.split.ids[at]
            images, targets, ids = (part.to(self.device, non_blocking=True) for part in parts)
            yield images, targets, ids

    def _prepare(self, parts: Parts, view: int) -> Parts:
        """The same with augmented and normalised images."""
        images, targets, ids = parts
        shift = self._shift
        if self.augment is not None:
            seeds = sample_seeds(ids, view, self.augment_seed)
            images = augment(images, seeds, self.augment, self._mean_colour)
            if self.augment.lighting:
                shift = shift + (lighting_shift(seeds, self.augment) / self._std_C).float()[:, :, None, None]
        images = images.contiguous(memory_format=self._memory_format)
        return images.float().mul_(self._scale).add_(shift), targets, ids
