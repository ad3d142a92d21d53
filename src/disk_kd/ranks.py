"""The processes ("ranks") of a run under torchrun, and the communication between them.

Without torchrun there is one process, and every function returns at once. Rank 0 is the main rank. Only it decides,
prints and writes. All ranks read its files, so all hosts must share a file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from disk_kd.errors import ConfigError, RunError

Result = TypeVar("Result")

_PATIENCE = timedelta(days=1)
"""How long ranks wait for work of the main rank, such as computing the fingerprint of the data."""
_group: Any = None
"""Process group for objects and for waiting, over the hosts' network."""
_store: Any = None
"""Store of keys and values for all ranks."""
_FAILED = "first rank that failed"
_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """Number of this process, counted from 0."""
    return dist.get_rank() if _joined() else _number("RANK", 0) if started_by_torchrun() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _joined() else 1


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_main() -> bool:
    """Whether this process is the main rank."""
    return rank() == 0


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return _number("WORLD_SIZE", 1) > 1


def _number(name: str, default: int) -> int:
    """An environment variable of torchrun as a number; an empty one counts as not set.

    Raises:
        ConfigError: it is not a number.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"the environment has {name}={text}, no number; unset it, or start with torchrun")
    return int(text)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes inside the block, if torchrun started any: NCCL between GPUs, gloo between CPUs.

    Args:
        device: the requested device. Each process of a host takes its own GPU.

    Yields:
        The device of this process.

    Raises:
        ConfigError: a host has more processes than GPUs, or an environment variable of torchrun is missing.
        RunError: another process ended or cannot be reached.
    """
    global _group, _store
    if not started_by_torchrun() or _joined():
        yield device
        return
    if missing := [name for name in _OF_TORCHRUN if not os.environ.get(name)]:
        raise ConfigError(
            f"the environment has WORLD_SIZE={os.environ['WORLD_SIZE']} and no {missing[0]}; start with torchrun, or"
            " unset WORLD_SIZE to run as one process"
        )
    device = _own(device)
    try:
        _store, number, count = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        bound = device if device.type == "cuda" else None
        dist.init_process_group(backend, store=_store, rank=number, world_size=count, device_id=bound)
        _group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield device
    except RuntimeError as error:
        if not _is_of_the_network(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"rank {rank()} lost the others ({reason}); start all again with --resume") from None
    # After an error the group is not destroyed, because that would wait for the other ranks.
    dist.destroy_process_group()
    _group = _store = None


def from_main(make: Callable[[], Result]) -> Result:
    """The result of `make` on the main rank, for all ranks. An error on the main rank is raised on all.

    Args:
        make: called on the main rank alone; the other ranks wait.
    """
    if size() == 1:
        return make()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = make()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, group=_group)
    if box[1] is not None:
        raise box[1]
    return box[0]


@contextmanager
def raised_once() -> Iterator[None]:
    """Of the ranks that fail in the block, only the first raises its error. torchrun then ends the other ranks.

    Raises:
        SystemExit: another rank failed first and reports its error.
    """
    try:
        yield
    except Exception:
        try:
            post(_FAILED, str(rank()))
            first = posted(_FAILED)
        except dist.DistError:  # the store ended with the main rank, which failed first and reports its error
            raise SystemExit(2) from None
        if first not in (None, str(rank())):
            raise SystemExit(2) from None
        raise


def mean(values: Tensor) -> Tensor:
    """The mean over the ranks of tensors of one shape."""
    return values if size() == 1 else total(values) / size()


def total(values: Tensor) -> Tensor:
    """The sum over the ranks."""
    if size() == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def share_buffers(module: nn.Module) -> None:
    """Copy the main rank's buffers to all ranks. Batch norms of ranks differ because they see different images."""
    if size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def gather(values: Result) -> list[Result]:
    """The values of all ranks, in order of rank."""
    if size() == 1:
        return [values]
    boxes: list[Any] = [None] * size()
    dist.all_gather_object(boxes, values, group=_group)
    return boxes


def post(key: str, value: str) -> None:
    """Publish a value under a key for all ranks. If several ranks use the same key, the first counts."""
    if _store is not None:
        _store.compare_set(key, "", value)


def posted(key: str) -> str | None:
    """The value that a rank published under a key; None if there is none. It does not wait."""
    if _store is None or not _store.check([key]):
        return None
    return _store.get(key).decode()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _own(device: torch.device) -> torch.device:
    """The GPU of this process on its host."""
    if device.type != "cuda":
        return device
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise ConfigError(
            f"torchrun started more processes on this host than its {there} GPUs; give --nproc-per-node {there}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _is_of_the_network(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "nccl", "peer"))
