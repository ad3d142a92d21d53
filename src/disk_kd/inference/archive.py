"""A check of torch.export archives before they are loaded.

`torch.export.load` unpickles parts of an archive without limits and opens compiled libraries in it, so a file from a
stranger could run code. The archives of this package have no such parts.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch

from disk_kd.errors import CheckpointError, one_line, shown

_KNOWN = (
    *("data/weights/", "data/constants/", "data/sample_inputs/", "models/", "extra/"),
    *("archive_format", "archive_version", "byteorder", "version", ".data/"),
)
"""Parts of an archive with weights and a graph alone."""


def check_archive(path: Path) -> None:
    """Check that an archive has nothing that runs code when it is loaded.

    Raises:
        CheckpointError: it is no archive, or has pickled weights, custom objects or compiled libraries.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reason = next(filter(None, (_danger(archive, name) for name in archive.namelist())), None)
    except Exception as error:  # what is damaged or not weights only fails in many ways
        raise CheckpointError(
            f"{path} cannot be read as a torch.export archive ({one_line(error)}); export it again"
        ) from None
    if reason is not None:
        raise CheckpointError(f"{path} has {reason}, which could run code; give a file that disk-kd export wrote")


def _danger(archive: zipfile.ZipFile, name: str) -> str | None:
    """What could run code in a part of an archive; None: nothing."""
    _, _, inner = name.partition("/")
    if not inner.startswith(_KNOWN):
        return f"the part {shown(inner)[:80]}"
    if inner.startswith("data/sample_inputs/"):
        torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    if inner.startswith("data/constants/") and not inner.endswith(".json"):
        return None if inner.startswith("data/constants/tensor_") else "objects that are not tensors"
    if inner.startswith(("data/weights/", "data/constants/")) and inner.endswith(".json"):
        config = json.loads(archive.read(name))["config"].values()
        if any(part["use_pickle"] is not False for part in config):
            return "pickled tensors"
        if inner.startswith("data/constants/") and any(not part["path_name"].startswith("tensor_") for part in config):
            return "objects that are not tensors"
    return None
