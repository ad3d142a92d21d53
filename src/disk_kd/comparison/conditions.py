"""The options in which the runs of a comparison differ apart from their methods, read from their run directories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from disk_kd.config import RunConfig, identity
from disk_kd.files import read_yaml
from disk_kd.options import dotted
from disk_kd.recipe import CONFIG

Conditions = dict[str, Any]
"""Options of a run by dotted name, without those of its method and its environment."""

_SEED_FOLDER = re.compile(r"seed\d+")
_VERSION = re.compile(r"# disk-kd (\S+)")
_DATA = "data.json"
_SEED = re.compile(r"^(  seed|output): .*$", re.MULTILINE)
_SPLITS = ("training", "validation", "test")


def resolved_conditions(folder: Path) -> Conditions:
    """The conditions of a run, from the configuration in its run directory, in which all decisions are made.

    Args:
        folder: the run directory.

    Raises:
        ConfigError: its `config.yaml` is not valid in this version.
    """
    text = (folder / CONFIG).read_text(encoding="utf-8")
    written, images = _VERSION.match(text), fingerprints(folder)
    return {
        **_conditions_of(_Text(_SEED.sub("", text), folder / CONFIG)),
        **{f"{split} images": images.get(split, "none")[:8] if images else "unknown" for split in _SPLITS},
        "disk-kd": written[1] if written else "?",
    }


def fingerprints(folder: Path) -> dict[str, str]:
    """Fingerprint of the images of each split of a run; empty if an earlier version made the run.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not (folder / _DATA).is_file():
        return {}
    found = read_yaml(folder / _DATA)
    return {str(split): str(value) for split, value in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True)
class _Text:
    """A configuration without seed and output, which `conditions` ignores, and a file that holds it."""

    text: str
    file: Path = field(compare=False)


@cache
def _conditions_of(text: _Text) -> Conditions:
    """`conditions`, read once for all seeds, because checking a configuration is slow."""
    return conditions(RunConfig.read(text.file.parent))


def conditions(config: RunConfig) -> Conditions:
    """The options of a run that should be equal in all rows of a fair comparison."""
    parts = {name: asdict(part) for name in ("data", "student", "teacher", "train") if (part := getattr(config, name))}
    found = identity(dotted(parts))
    del found["train.seed"]
    for name in found:
        if name.endswith(".weights") and found[name]:
            found[name] = _SEED_FOLDER.sub("seed*", found[name])
    return found


def conditions_text(rows: Mapping[str, Sequence[Conditions]], starts: Mapping[str, str] = {}) -> str:
    """The options in which the runs of a comparison differ, one line for each option, the most frequent value first.

    Args:
        rows: conditions of each finished run, by row.
        starts: the row whose students a row starts from, if there is one.
    """
    runs: dict[str, Conditions] = {}
    for row, found in rows.items():
        if row in starts:
            found = [one | {"student.weights": f"of row {starts[row]}"} for one in found]
        alike = all(one == found[0] for one in found)
        runs |= {row: found[0]} if alike and found else {f"{row} (run {i})": one for i, one in enumerate(found, 1)}
    lines = []
    for option in dict.fromkeys(option for options in runs.values() for option in options):
        values: dict[str, list[str]] = {}
        for run, options in runs.items():
            if option in options:
                values.setdefault(_shown(options[option]), []).append(run)
        usual, *others = sorted(values, key=lambda value: -len(values[value]))
        if others:
            exceptions = "; ".join(f"{value} in {', '.join(values[value])}" for value in others)
            lines.append(f"- {option}: {usual}; {exceptions}")
    if not lines:
        return "All rows have the same data, augmentation, epochs, start, optimiser, weight decay and teacher."
    return "\n".join(["Apart from their methods the rows differ in:", "", *lines])


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
