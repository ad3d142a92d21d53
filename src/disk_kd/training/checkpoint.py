"""Checkpoints: one safetensors file with the whole state of a run.

The state is nested dicts, lists, tensors and plain values. Its tensors are saved under their path; one JSON text in
the header describes the structure. Nothing is pickled, so loading a file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from disk_kd import ranks
from disk_kd.errors import CheckpointError, one_line
from disk_kd.files import save_tensors

_TENSOR = "$tensor"
_INT_KEYS = "$int_keys"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, completely or not at all.

    Args:
        path: file to write. Its folder exists.
        state: dicts (with text keys only, or integer keys only), lists, tensors, and values that JSON supports.

    Raises:
        OSError: the disk is full or not writable. The previous file at `path` is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(state, "", tensors)
    text = json.dumps(skeleton)
    save_tensors(path, tensors, {"state": text, "sha256": _digest(text, tensors)})


def is_finite(state: Any) -> bool:
    """Whether all tensors of a nested state are finite. The host waits for the device."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return all(map(is_finite, parts))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote. Tensors are on the CPU; tuples become lists.

    Raises:
        CheckpointError: there is no such file, or it is not a complete checkpoint of this project.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        if about.get("sha256", "") not in ("", _digest(about["state"], tensors)):
            raise ValueError("its content changed since it was written")
        state = _unflatten(json.loads(about["state"]), tensors.__getitem__)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
        return state
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a complete checkpoint of disk-kd ({error}); delete it to start again"
        ) from None


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Inside the block, errors in using the state at `path` are reported as a damaged checkpoint.

    Raises:
        CheckpointError: a part is missing, or has another type or shape.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, or belongs to another run ({type(error).__name__}: {one_line(error)}); delete it to"
            " start again"
        ) from None


def counted(value: Any, *, least: int = 0, most: float = math.inf) -> int:
    """An integer from `least` to `most`.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"a count of {value!r}, expected from {least} to {most}")
    return value


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state's text and tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, dict):
        flat = {str(key): _flatten(item, f"{path}.{key}", tensors) for key, item in value.items()}
        return {_INT_KEYS: flat} if value and all(isinstance(key, int) for key in value) else flat
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten(value: Any, read: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return read(value[_TENSOR])
    if _INT_KEYS in value:
        return {int(key): _unflatten(item, read) for key, item in value[_INT_KEYS].items()}
    return {key: _unflatten(item, read) for key, item in value.items()}


def seed_all(seed: int) -> None:
    """Seed all random generators of models and methods, so that a run depends only on its seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_draws(seed: int, step: int) -> None:
    """Seed random draws such as dropout by step and rank, so that the state of no rank must be saved."""
    torch.manual_seed(hash((seed, step, ranks.rank())) % 2**63)


def random_state() -> dict[str, Any]:
    """States of all random generators of models and methods."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.array(keys)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
