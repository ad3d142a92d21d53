"""What run directories hold, and which runs differ in their seed alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from disk_kd.build import STUDENT
from disk_kd.comparison.conditions import Conditions, fingerprints, resolved_conditions
from disk_kd.config import RunConfig, identity
from disk_kd.errors import RunError
from disk_kd.old_names import new_keys
from disk_kd.options import dotted
from disk_kd.recipe import CONFIG
from disk_kd.summary import read_summary
from disk_kd.tasks import HelpsExamples, Quantity

_SEED_FOLDER = re.compile(r"seed\d+")
_SET_ASIDE = ("data.validation", "data.split_seed")
_READING = ("data.image_size", "data.crop_pct", "data.grey_bits", "data.skip_unreadable", "data.timm.enabled")
"""Options that change what is read of the same files, and with it their fingerprint."""


@dataclass(frozen=True, eq=False)
class Run:
    """The files of a run directory.

    Attributes:
        folder: of the run.
        text: of its `config.yaml`.
        summary: of a finished run; None of one that is not finished.
        lines: of its `metrics.jsonl`.
    """

    folder: Path
    text: str
    summary: dict[str, Any] | None
    lines: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in a folder.

        Raises:
            RunError: the folder is not a run directory, or its files cannot be read.
        """
        if not (folder / CONFIG).is_file():
            raise RunError(f"{folder} is not a run directory (it has no {CONFIG}); give one that train or distill made")
        summary = read_summary(folder)
        try:
            run = cls(
                folder,
                (folder / CONFIG).read_text(encoding="utf-8"),
                summary,
                tuple(_json_lines(folder / "metrics.jsonl")),
            )
            run.seed  # noqa: B018 (what is no mapping of options shows now)
        except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise RunError(f"cannot read the run in {folder}: {' '.join(str(error).split())}") from None
        return run

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Its configuration as it is written, unchecked."""
        return yaml.safe_load(self.text)

    @cached_property
    def config(self) -> RunConfig:
        """Its configuration. Read when asked for, because a check takes longer than all else that is read of a run.

        Raises:
            ConfigError: it is not one of this version.
        """
        return RunConfig.read(self.folder)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.tree["train"]["seed"]

    @property
    def split(self) -> str:
        """The split of its results: test, or validation if the data has no test split."""
        return "test" if self.summary and "test" in self.summary else "validation"

    def images_of(self, split: str, by_place: bool = True) -> tuple[Any, ...] | None:
        """The same for runs whose options name the same images for a split; None where it was not measured.

        Args:
            split: "validation" or "test".
            by_place: the same folder counts as the same images; otherwise it does not matter where they lie.
        """
        measured = (self.summary or {}).get(split)
        if measured is None:
            return None
        name = self.conditions["data.name"]
        # The name tells what the images are, or the folder or reader that they come from.
        root = self.conditions["data.root"] if by_place and (name == "folder" or "/" in name) else None
        set_aside = [self.conditions[option] for option in _SET_ASIDE] if split == "validation" else ()
        return (name, root, measured["samples"], *set_aside)

    def fingerprint(self, split: str) -> str | None:
        """Of the images of a split, as they were read; None where an earlier version, which kept none, made the run."""
        return self.fingerprints.get(split)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the images of each split."""
        return fingerprints(self.folder)

    @cached_property
    def conditions(self) -> Conditions:
        """What `resolved_conditions` says of it, which is read once for all seeds."""
        return resolved_conditions(self.folder)

    @property
    def reading(self) -> tuple[Any, ...]:
        """The same for runs that read the same files to the same pixels."""
        return tuple(self.conditions[option] for option in _READING)

    @property
    def weights(self) -> Path:
        """The file of its student."""
        return self.folder / STUDENT

    @property
    def written_key(self) -> str:
        """Equal for runs that differ in their seed alone, if one version wrote their files."""
        return self._key(identity(dotted(self.tree)))

    @property
    def key(self) -> str:
        """Equal for runs that differ in their seed alone. Options that a file lacks have their defaults."""
        return self._key(self.config.identity)

    def _key(self, options: Mapping[str, Any]) -> str:
        """Text of options and images, without the seed."""
        options = {name: value for name, value in options.items() if name != "train.seed"}
        return _SEED_FOLDER.sub("seed", json.dumps([options, self.fingerprints], sort_keys=True, default=str))

    @cached_property
    def student_lines(self) -> list[dict[str, Any]]:
        """The training lines of student epochs, each with the number of student "epochs" at its end."""
        fixed = self.config.task_class.fixed_student_phases
        train = [line for line in self.lines if line["kind"] == "train"]
        if not train:
            return []
        steps = max(line["step"] / (line["epoch"] + 1) for line in train)
        done: dict[int, int] = {}
        found = []
        for line in train:
            if line["phase"] not in fixed:
                before = done.setdefault(line["epoch"], len(done))
                found.append({**line, "epochs": before + line["step"] / steps - line["epoch"]})
        return found


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: short, from the folders.
        runs: by seed.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs with a summary."""
        return tuple(run for run in self.runs if run.summary is not None)

    @property
    def chosen(self) -> Run:
        """The run that would be shipped: of the finished ones the best on validation."""
        return max(self.finished or self.runs[:1], key=_validated)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What its method logs beside losses."""
        return self.chosen.config.quantities

    @property
    def helps_examples(self) -> bool:
        """Whether its method helps single examples (`disk_kd.tasks.HelpsExamples`)."""
        return issubclass(self.chosen.config.task_class, HelpsExamples)

    @property
    def labels_alone(self) -> bool:
        """Whether nothing but the labels taught it."""
        config = self.chosen.config
        return config.method == "ce" and config.hint is None

    def values(self, *names: str) -> list[float]:
        """A number of the summary, or of its split's metrics with "split" for the split, of each finished run."""
        found = []
        for run in self.finished:
            value: Any = run.summary
            for name in names:
                value = (value or {}).get(run.split if name == "split" else name)
            if value is not None:
                found.append(value)
        return found


def _validated(run: Run) -> float:
    summary = run.summary or {}
    return summary.get("validation", summary.get("test", {})).get("top1", -1.0)


def on_same_images(runs: Sequence[Run], split: str) -> bool:
    """Whether runs were measured on the same images of a split, as far as their folders tell.

    Fingerprints decide where two runs read files alike, and the options elsewhere.

    Args:
        runs: any number.
        split: "validation" or "test"; a run that was not measured on it has other images than one that was.
    """
    marks_of_all = {run.fingerprint(split) for run in runs}
    known = len(marks_of_all) == 1 and None not in marks_of_all
    by_reading: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        if (mark := run.fingerprint(split)) is not None:
            by_reading.setdefault(run.reading, set()).add(mark)
    named = {run.images_of(split, by_place=not known) for run in runs}
    return len(named) <= 1 and all(len(marks) == 1 for marks in by_reading.values())


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in run directories, and in folders of run directories such as a comparison's.

    Raises:
        RunError: a path holds no run.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = [path] if (path / CONFIG).is_file() else sorted(file.parent for file in path.rglob(CONFIG))
        if not found:
            raise RunError(
                f"{path} is not a run directory (it has no {CONFIG}) and holds none;"
                " give run directories, or the folder of a comparison"
            )
        folders |= dict.fromkeys(found)
    return [Run.read(folder) for folder in folders]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same images that differ in their seed alone together, in the order of the runs.

    Each group has a name of its own.
    """
    written: dict[str, list[Run]] = {}
    for run in runs:
        written.setdefault(run.written_key, []).append(run)
    by_key: dict[str, list[Run]] = {}
    for members in written.values():
        by_key.setdefault(members[0].key, []).extend(members)
    groups = [_one_a_seed(members) for members in by_key.values()]
    names = _short_names([_named_folder(members[0].folder) for members in groups])
    return [Group(name, tuple(members)) for name, members in zip(names, groups, strict=True)]


def name_groups(rows: Mapping[str, Sequence[Run]]) -> list[Group]:
    """Rows of a comparison as they are, under as few last parts of their names as tell all apart."""
    names = _short_names([Path(name) for name in rows])
    return [Group(name, tuple(_one_a_seed(members))) for name, members in zip(names, rows.values(), strict=True)]


def _one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """In the order of their seeds; a run and its copy, or its repetition, are one run: the finished one, if one is."""
    by_seed: dict[int, Run] = {}
    for run in runs:
        if run.seed not in by_seed or (run.summary and not by_seed[run.seed].summary):
            by_seed[run.seed] = run
    return [by_seed[seed] for seed in sorted(by_seed)]


def _named_folder(folder: Path) -> Path:
    """The folder that tells what a run is: seed3 does not."""
    folder = folder.absolute()
    return folder.parent if _SEED_FOLDER.fullmatch(folder.name) else folder


def _short_names(folders: Sequence[Path]) -> list[str]:
    """As few last parts of the paths as tell all apart; numbers where two are of one folder."""
    depth = max(len(folder.parts) for folder in folders)
    for parts in range(1, depth + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return [name if names.count(name) == 1 else f"{name} {names[:i].count(name) + 1}" for i, name in enumerate(names)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for one that is half written."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(new_keys(json.loads(text)))
        except (AttributeError, ValueError):  # cut off, or no mapping
            continue
    return lines
