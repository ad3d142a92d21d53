"""Which training samples are for validation, for training with their labels, and for training without.

Shapes: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from disk_kd.data.samples import Parts, Samples
from disk_kd.data.sampling import set_aside, stratified
from disk_kd.data.seeds import LIMIT, LIMIT_UNLABELLED, VALIDATION, sample_seeds
from disk_kd.data.settings import REST, DataSettings
from disk_kd.errors import DataError
from disk_kd.support import UNLABELLED


@dataclass(frozen=True, eq=False)
class Chosen:
    """Numbers of training samples, each int64 in ascending order.

    Attributes:
        labelled: samples to learn from with their labels.
        unlabelled: samples to learn from without labels.
        validation: samples set aside for validation; None: none.
    """

    labelled: Tensor
    unlabelled: Tensor
    validation: Tensor | None

    @property
    def train(self) -> Tensor:
        """All samples to learn from."""
        return torch.cat([self.labelled, self.unlabelled]).sort().values

    def without_labels(self, samples: Samples) -> Samples:
        """The training samples with labels where they are to be used."""
        targets = samples.targets.clone()
        targets[self.unlabelled] = UNLABELLED
        return replace(samples, targets=targets)

    def with_unlabelled(self, ids: Tensor, data: DataSettings) -> Chosen:
        """The same with further unlabelled samples, at most `data.limit_unlabelled` of all."""
        return replace(self, unlabelled=_limited(torch.cat([self.unlabelled, ids]), data))


def choose(data: DataSettings, parts: Parts) -> Chosen:
    """The choice that the settings describe. It depends on `split_seed` and the numbers of the samples alone.

    Raises:
        DataError: no sample is left for training.
    """
    targets = parts.train.targets
    labelled, unlabelled = ((targets != UNLABELLED).nonzero().flatten(), (targets == UNLABELLED).nonzero().flatten())
    validation = None
    if parts.validation is None and data.validation and len(labelled):
        count = max(1, round(data.validation * len(labelled)))
        left, aside = set_aside(targets[labelled], labelled, count, VALIDATION, data.split_seed)
        validation, labelled = labelled[aside], labelled[left]
        if not len(labelled):
            raise DataError(
                f"the validation split takes all {count} training images of {data.name}; lower data.validation"
            )
    if data.limit_train is not None:
        kept = stratified(targets[labelled], labelled, data.limit_train, LIMIT, data.split_seed)
        if data.unlabelled == REST:
            left = torch.ones(len(labelled), dtype=torch.bool)
            left[kept] = False
            unlabelled = torch.cat([unlabelled, labelled[left]])
        labelled = labelled[kept]
    if data.unlabelled == REST and not len(unlabelled):
        raise DataError(
            "data.unlabelled=rest finds no unlabelled images; give data.limit_train, the number of images whose labels"
            " are used, or a folder of other images"
        )
    return Chosen(labelled, _limited(unlabelled, data), validation)


def _limited(ids: Tensor, data: DataSettings) -> Tensor:
    """At most `data.limit_unlabelled` of the samples."""
    if data.limit_unlabelled is not None:
        ids = ids[sample_seeds(ids, LIMIT_UNLABELLED, data.split_seed).argsort()[: data.limit_unlabelled]]
    return ids.sort().values
