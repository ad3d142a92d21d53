"""Assigns GPUs to the workers of a comparison."""

from __future__ import annotations

from dataclasses import replace

from disk_kd.config import RunConfig


def gpu_of(worker: int, gpus: int) -> int | None:
    """The GPU of a worker. With 2 GPUs the workers 0, 1, 2, 3 get 0, 1, 0, 1. None: there is no GPU.

    Args:
        worker: number of the worker, from 0.
        gpus: number of visible GPUs.
    """
    return worker % gpus if gpus else None


def placed(config: RunConfig, gpu: int | None) -> RunConfig:
    """The same run on that GPU, unless it names another device."""
    if gpu is None or config.train.device not in ("auto", "cuda"):
        return config
    return replace(config, train=replace(config.train, device=f"cuda:{gpu}"))
