"""The metadata in a file of weights that a run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from disk_kd.errors import CheckpointError
from disk_kd.models.weights import read_metadata

METADATA = "disk_kd"
"""Key of the metadata in a safetensors file."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "options": dict,
    "in_chans": int,
    "image_size": int,
    "crop_pct": (int, float),
    "mean": list,
    "std": list,
    "classes": list,
    "hint": dict,
}


def read_about(weights: Path) -> dict[str, Any]:
    """The metadata that `disk_kd.trained.student_metadata` wrote; empty for other files.

    Raises:
        CheckpointError: the file is damaged, cannot be read, or has metadata of another form.
    """
    if weights.suffix != ".safetensors":
        return {}
    text = read_metadata(weights).get(METADATA, "{}")
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict) or not all(
        isinstance(about[key], _KINDS[key]) for key in _KINDS.keys() & about.keys()
    ):
        raise CheckpointError(f"the model metadata of {weights} cannot be read; give a file that a run wrote")
    return about
