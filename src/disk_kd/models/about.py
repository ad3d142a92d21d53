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
    "grey_bits": int,
    "mean": list,
    "std": list,
    "classes": list,
    "hint": dict,
    "int8": dict,
}
_RANGES = {"in_chans": (1, 10_000), "image_size": (1, 10_000), "crop_pct": (1e-6, 1), "grey_bits": (9, 16)}
_OF_DATA = ("crop_pct", "grey_bits")


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
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not _is_plausible(about):
        raise CheckpointError(f"the model metadata of {weights} cannot be read; give a file that a run wrote")
    return about


def _is_plausible(about: dict[str, Any]) -> bool:
    """Whether metadata has the types and ranges that a run writes."""
    if not all(isinstance(about[key], _KINDS[key]) for key in _KINDS.keys() & about.keys()):
        return False
    if not all(least <= about.get(key, least) <= most for key, (least, most) in _RANGES.items()):
        return False
    hint = about.get("hint", {"name": "", "options": {}, "teacher": {"name": "", "options": {}}})
    if "pretrained" in about.get("options", {}):  # a file is no reason to fetch weights from the network
        return False
    return _names_with_options(hint) and _names_with_options(hint.get("teacher"))


def _names_with_options(part: Any) -> bool:
    if not (isinstance(part, dict) and isinstance(part.get("name"), str) and isinstance(part.get("options"), dict)):
        return False
    return "pretrained" not in part["options"]


def recorded_data(weights: Path) -> dict[str, Any]:
    """The options of the data that a file of weights records: how its images were read from files.

    Raises:
        CheckpointError: as for `read_about`.
    """
    about = read_about(weights)
    return {name: about[name] for name in _OF_DATA if name in about}
