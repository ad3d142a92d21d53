"""The manifest of a teacher store: what the outputs were made from. It is compared before they are used.

A manifest holds
    format   the version of the folder's format;
    facts    everything that determines an output: the teacher, the data, the layout;
    shapes   the shape of each output, per sample;
    views    for each view `build_s` (seconds to build it), `by` (host and process that last worked on it) and
             `errors` (change of the logits by storing).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from disk_kd.errors import CheckpointError
from disk_kd.files import write_text
from disk_kd.teacher.frozen import Teacher

FORMAT = 2
MANIFEST = "manifest.json"


def teacher_facts(teacher: Teacher) -> dict[str, Any]:
    """What stored outputs depend on in the teacher: its model, precision, label map, and images."""
    return {
        "teacher_sha256": teacher.weights_sha256,
        "teacher_structure_sha256": teacher.structure_sha256,
        "precision": teacher.precision,
        "teacher_mean": teacher.mean,
        "teacher_std": teacher.std,
        "teacher_image_size": teacher.image_size,
        "input_mean": teacher.input_mean,
        "input_std": teacher.input_std,
    } | ({} if teacher.label_map is None else {"teacher_classes": teacher.label_map.groups})


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts as read from a JSON file: tuples become lists, keys become text."""
    return json.loads(json.dumps(dict(facts)))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the store in `folder`.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has another format.
    """
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no teacher store at {folder}; build it, or give the folder of one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{MANIFEST}: {error}") from None
    if not isinstance(record, dict):
        raise damaged(folder, f"{MANIFEST} holds no facts")
    refuse_difference(folder, record, {"format": FORMAT}, ["format"])
    for name in ("facts", "shapes", "views"):
        if not isinstance(record.get(name), dict):
            raise damaged(folder, f"{MANIFEST} has no {name}")
    for name, shape in record["shapes"].items():
        if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
            raise damaged(folder, f"{MANIFEST} has {shape!r} as the shape of {name}")
    for view, entry in record["views"].items():
        if not view.isdecimal() or not isinstance(entry, dict):
            raise damaged(folder, f"{MANIFEST} has {entry!r} of view {view}")
    return record


def agreed_record(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the store in `folder`, which must have exactly these facts; a new, unwritten one if there is
    none.

    Raises:
        CheckpointError: a fact differs, or the manifest cannot be read.
    """
    if not (folder / MANIFEST).exists():
        return {"format": FORMAT, "facts": dict(facts), "shapes": {}, "views": {}}
    record = read_manifest(folder)
    refuse_difference(folder, record["facts"], facts, record["facts"].keys() | facts.keys())
    return record


@contextmanager
def changed_manifest(folder: Path, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The current manifest, locked for changes in the block and written at its end. Other processes wait.

    Raises:
        CheckpointError: as for `agreed_record`.
        OSError: the disk is full or not writable.
    """
    with FileLock(folder / "lock"):
        for leftover in folder.glob(f"{MANIFEST}.*.tmp"):  # of a process that was killed while it wrote one
            leftover.unlink()
        record = agreed_record(folder, facts)
        yield record
        write_text(folder / MANIFEST, json.dumps(record, indent=2) + "\n")


def damaged(folder: Path, what: str) -> CheckpointError:
    """The error for a store whose files changed since they were written."""
    return CheckpointError(f"teacher store {folder} is damaged ({what}); delete it or give another path")


def refuse_difference(
    folder: Path, record: Mapping[str, Any], wanted: Mapping[str, Any], names: Collection[str]
) -> None:
    """Raise an error if one of `names` differs between `record` and `wanted`.

    Raises:
        CheckpointError: a value differs. The message names the first different field and both values.
    """
    for name in sorted(names):
        found = _difference(name, record.get(name), wanted.get(name))
        if found is not None:
            field, stored, asked = found
            raise CheckpointError(
                f"teacher store {folder} was made with {field} = {stored}, this run has {asked}; "
                "delete it or give another path"
            )


def _difference(name: str, stored: Any, asked: Any) -> tuple[str, Any, Any] | None:
    """The first field in which two JSON values differ, with both values; None if they are equal."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in sorted(stored.keys() | asked.keys()):
            if found := _difference(f"{name}.{key}", stored.get(key), asked.get(key)):
                return found
        return None
    return None if stored == asked else (name, stored, asked)
