"""Which GPU a worker of a comparison trains on."""

from __future__ import annotations

from dataclasses import replace

from disk_kd.config import RunConfig


def gpu_of(worker: int, gpus: int) -> int | None:
    """The GPU of a worker, given out in turn: with 2 GPUs workers 0, 1, 2, 3 take 0, 1, 0, 1. None: there is no GPU.

    Args:
        worker: its number, from 0.
        gpus: how many are visible.
    """
    return worker % gpus if gpus else None


def placed(config: RunConfig, gpu: int | None) -> RunConfig:
    """The run on that GPU, unless it names another device. Its result stays the same."""
    if gpu is None or config.train.device not in ("auto", "cuda"):
        return config
    return replace(config, train=replace(config.train, device=f"cuda:{gpu}"))
