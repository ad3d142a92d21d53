"""Files that a crash, a full disk or a second reader never sees half written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor

from disk_kd.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there is synced and renamed over `path` at the end.

    If the block raises, the temporary file goes and `path` stays as it was.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors to `path`, whole or not at all.

    Tensors on any device, of any memory format, and such that share memory are copied first.

    Raises:
        OSError: as `replacing`.
    """
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, dict(metadata or {}))  # as bytes, because save_file gives files that only the owner can read
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: it cannot be read, a key stands twice in one mapping, or something in it holds itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _check_node(yaml.compose(text, Loader=yaml.SafeLoader), path, ())
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def _check_node(node: yaml.Node | None, path: Path, above: tuple[yaml.Node, ...]) -> None:
    if any(node is each for each in above):
        raise ConfigError(f"line {above[-1].start_mark.line + 1} of {path} holds itself; write out what it means")
    if not isinstance(node, yaml.CollectionNode):
        return
    seen = set()
    for item in node.value:
        key, *rest = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ConfigError(f"key {key.value!r} stands twice, again in line {key.start_mark.line + 1} of {path}")
            seen.add(key.value)
        for each in rest:
            _check_node(each, path, (*above, node))
