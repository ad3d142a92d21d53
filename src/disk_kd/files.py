"""Files that are written completely or not at all, also after a crash, on a full disk, or with other readers."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors.torch import save
from torch import Tensor

from disk_kd.errors import ConfigError, RunError, one_line

_TEMPORARY = re.compile(r"(.+)\.(\d+)\.tmp")
_CLOCKS_S = 2.0
"""Tolerance between the times of processes and of files."""
_MOST_YAML_NODES = 100_000


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. At the end of the block it is synced to the disk and renamed to `path`.

    If the block raises an error, the temporary file is removed and `path` is unchanged.

    Raises:
        RunError: `path` exists and is not a regular file.
        OSError: the folder is missing or not writable, or the disk is full.
    """
    check_replaceable(path)
    remove_leftovers(path.parent, path.name)
    temporary = temporary_path(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raise an error if `path` is a link, a device, a pipe or a folder, which a file must not replace.

    Raises:
        RunError: it is one of these.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "device or a pipe"
        raise RunError(f"{path} is a {kind}, which is not replaced by a file; give another name")


def temporary_path(path: Path) -> Path:
    """The path where this process writes the new content of `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed processes left in `folder`.

    Args:
        folder: the folder.
        name: name of the file or folder that they were to replace; its temporary folders are removed too. None: of all
            files.
    """
    for path in folder.glob("*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or name not in (None, found[1]) or _at_work(int(found[2]), path):
            continue
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif name is not None:
            shutil.rmtree(path)


def _at_work(process: int, path: Path) -> bool:
    """Whether the process may still write `path`: it is another live process, and started before the last write."""
    try:
        return process != os.getpid() and psutil.Process(process).create_time() < path.stat().st_mtime + _CLOCKS_S
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def user_path(text: str | Path) -> Path:
    """A path as a user writes it; ~ is the home directory.

    Raises:
        ConfigError: the path is not valid, or the home directory is not known.
    """
    if "\0" in str(text):
        raise ConfigError(f"the path {str(text)!r} holds a NUL character, which no file name may; leave it out")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"the home directory in {text} is unknown; write the full path") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors to `path`, completely or not at all.

    Tensors on a device, in other memory formats, or with shared memory are copied first.

    Raises:
        OSError: as for `replacing`.
    """
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, dict(metadata or {}))  # as bytes, because save_file gives files that only the owner can read
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _sync_folder(folder: Path) -> None:
    """Sync a rename in `folder` to the disk, so that it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: the file cannot be read, a mapping has a key twice, a value contains itself, or there are more than
            `_MOST_YAML_NODES` values.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ConfigError(f"cannot read {path}: it is a folder, a device or a pipe; give a YAML file")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except ConfigError:
        raise
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text; give a YAML file") from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}") from None
    except Exception as error:  # PyYAML passes on Python's errors for invalid dates, numbers and booleans
        raise ConfigError(f"cannot read {path}: a value is not what it looks like ({one_line(error)})") from None


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Args:
        text: the text.
        where: what messages call it.

    Raises:
        ConfigError: a mapping has a key twice, a value contains itself or is nested too deeply, or there are more than
            `_MOST_YAML_NODES` values.
        Exception: it is not YAML, or a value is not what its tag says.
    """
    try:
        _check_node(yaml.compose(text, Loader=yaml.SafeLoader), where, (), iter(range(_MOST_YAML_NODES)))
        return yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(f"cannot read {where}: it is nested too deeply; write it flatter") from None


def _check_node(node: yaml.Node | None, where: str, above: tuple[yaml.Node, ...], left: Iterator[int]) -> None:
    """Raise an error for a node that contains itself or a key twice. An alias counts like the node it refers to."""
    if next(left, None) is None:
        raise ConfigError(f"{where} holds over {_MOST_YAML_NODES:,} values, aliases written out; make it smaller")
    if any(node is each for each in above):
        raise ConfigError(f"line {above[-1].start_mark.line + 1} of {where} holds itself; write out what it means")
    if not isinstance(node, yaml.CollectionNode):
        return
    seen = set()
    for item in node.value:
        key, *rest = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ConfigError(f"key {key.value!r} occurs twice, again in line {key.start_mark.line + 1} of {where}")
            seen.add(key.value)
        for each in rest:
            _check_node(each, where, (*above, node), left)
