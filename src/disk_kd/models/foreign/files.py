"""What the exported files of all kinds have in common: their hash, their description and batches of a fixed size.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from disk_kd.errors import ConfigError, ModelError
from disk_kd.models.about import METADATA

DESCRIPTION = f"{METADATA}.json"
"""Name of the description that `disk-kd export` puts into torch.export archives."""

_PIECE_BYTES = 2**24


def needed(module: str, name: str, extra: str) -> ModuleType:
    """An optional package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{name} needs the package {module}; pip install 'disk-kd[{extra}]'") from error


@contextmanager
def offline(only: bool = True) -> Iterator[None]:
    """Keep libraries that use the Hugging Face hub off the network inside the block.

    Its client otherwise asks for a list of programs even where `local_files_only` is given.

    Args:
        only: false leaves the network as it is.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or only
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def file_hash(paths: Iterable[Path]) -> Tensor:
    """SHA-256 of files, as 32 bytes: uint8 (32,).

    In a buffer it is part of a model's state, so `disk_kd.teacher.weights_hash` covers the whole file.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def described(text: str | bytes | None) -> dict[str, Any]:
    """What the description of `disk-kd export` says, in the keys of timm's `pretrained_cfg`; empty without one."""
    try:
        about = json.loads(text or "{}")
    except ValueError:
        about = {}
    if not isinstance(about, dict):
        return {}
    settings: dict[str, Any] = {}
    if {"mean", "std"} <= about.keys():
        channels = len(about["mean"])
        pixels = about.get("input") == "pixels"
        settings["mean"] = (0.0,) * channels if pixels else tuple(about["mean"])
        settings["std"] = (1.0,) * channels if pixels else tuple(about["std"])
    if "classes" in about:
        settings |= {"label_names": tuple(about["classes"]), "num_classes": len(about["classes"])}
    return settings


def sized(name: str, shape: Sequence[Any], in_chans: int) -> tuple[int | None, dict[str, Any]]:
    """The fixed batch size of a graph's input, None if it takes any; and its image size, for `pretrained_cfg`.

    Args:
        name: name of the model, for messages.
        shape: (B, C, H, W) of the input; what is no int may vary.
        in_chans: channels of the data.

    Raises:
        ModelError: it is no batch of square images with these channels.
    """
    if len(shape) != 4:
        raise ModelError(
            f"{name} takes an input of shape {_shown(shape)}, not images (B, C, H, W); export it for images"
        )
    batch, *image = (size if isinstance(size, int) and size > 0 else None for size in shape)
    if image[0] not in (None, in_chans):
        last = " (its channels may come last; export it with channels first)" if image[2] == in_chans else ""
        raise ModelError(f"{name} takes images of shape {_shown(shape)}, the data has {in_chans} channels{last}")
    if None in image[1:]:
        return batch, {}
    return batch, {"input_size": (in_chans, image[1], image[2]), "strict_img_size": True}


def in_batches(run: Callable[[Tensor], Tensor], images_BCHW: Tensor, size: int | None) -> Tensor:
    """Run a graph that takes batches of one size only. The last batch is filled up with copies of its last image."""
    if size is None or len(images_BCHW) == size:
        return run(images_BCHW)
    outputs = []
    for part in images_BCHW.split(size):
        filling = part[-1:].expand(size - len(part), -1, -1, -1)
        outputs.append(run(torch.cat([part, filling]))[: len(part)])
    return torch.cat(outputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide logs and warnings of other libraries inside the block. What fails is told in one line instead."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _shown(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
