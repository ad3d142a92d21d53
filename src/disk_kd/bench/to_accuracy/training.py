"""The common interface of contestants: training epoch by epoch, and its accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from disk_kd.data import AnySplit, Loader
from disk_kd.devices import inference_batch, place
from disk_kd.trained import normalisation


class Training(Protocol):
    """A student in training."""

    @property
    def student(self) -> nn.Module:
        """The plain model."""

    def epoch(self, number: int) -> int:
        """Train for one epoch, from 0. Returns the number of images of the student."""

    def state(self) -> dict[str, Any]:
        """Everything that another process needs to go on with the next epoch."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state."""

    def close(self) -> None:
        """End the worker processes."""


def top1(model: nn.Module, split: AnySplit, device: torch.device) -> float:
    """Percentage of a split that a model classifies correctly, in eval mode. Its mode is restored afterwards."""
    mean, std = normalisation(model)
    size = inference_batch(device)
    loader = Loader(
        place(split, device), batch_size=size, mean=mean, std=std, shuffle=False, drop_last=False, device=device
    )
    was, right = model.training, 0
    model.eval()
    with torch.no_grad():
        for batch in loader.batches(0):
            right += int((model(batch.images).argmax(1) == batch.targets).sum())
    model.train(was)
    return 100 * right / len(split)


def own_compiler_cache(folder: Path) -> dict[str, str]:
    """Environment of a process that uses no compiled code of other processes."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
