"""Reads run directories and groups runs that differ only in their seed."""

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

_NEEDED = {"parameters", "multiply_adds", "student_epochs", "start_epochs", "start", "selected_epoch", "train_samples"}
_NEEDED |= {"peak_memory_bytes", "peak_device_memory_bytes", "hardware", "threads", "versions", "git_revision", "last"}
"""What the report reads of every summary."""
_SEED_FOLDER = re.compile(r"seed\d+")
_SET_ASIDE = ("data.validation", "data.split_seed")
_READING = ("data.image_size", "data.crop_pct", "data.grey_bits", "data.skip_unreadable", "data.timm.enabled")
"""Options that change the pixels that are read from the same files, and so the fingerprint."""


@dataclass(frozen=True, eq=False)
class Run:
    """The files of a run directory.

    Attributes:
        folder: the run directory.
        text: text of `config.yaml`.
        summary: content of `summary.json`; None if the run is not finished.
        lines: lines of `metrics.jsonl`.
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
            if summary is not None and (missing := _NEEDED - summary.keys()):
                raise ValueError(
                    f"summary.json lacks {', '.join(sorted(missing))}; delete it, and --resume writes it again"
                )
            run.seed  # noqa: B018 (raises an error now if the file is no mapping of options)
        except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise RunError(f"cannot read the run in {folder}: {' '.join(str(error).split())}") from None
        return run

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The configuration as written, unchecked."""
        return yaml.safe_load(self.text)

    @cached_property
    def config(self) -> RunConfig:
        """The configuration. It is read on demand, because checking it takes longer than all other reading of a run.

        Raises:
            ConfigError: it is not valid in this version.
        """
        return RunConfig.read(self.folder)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.tree["train"]["seed"]

    @property
    def measured(self) -> bool:
        """Whether the run is finished and its accuracy was measured."""
        return self.summary is not None and self.split in self.summary

    @property
    def split(self) -> str:
        """The split of its results: test, or validation if the data has no test split."""
        return "test" if self.summary and "test" in self.summary else "validation"

    def images_of(self, split: str, by_place: bool = True) -> tuple[Any, ...] | None:
        """A key that is equal for runs whose options name the same images for a split; None if it was not measured.

        Args:
            split: "validation" or "test".
            by_place: compare the folder of the images too.
        """
        measured = (self.summary or {}).get(split)
        if measured is None:
            return None
        name = self.conditions["data.name"]
        # The images are given by the dataset's name, or by the folder or reader that they come from.
        root = self.conditions["data.root"] if by_place and (name == "folder" or "/" in name) else None
        set_aside = [self.conditions[option] for option in _SET_ASIDE] if split == "validation" else ()
        return (name, root, measured["samples"], *set_aside)

    def fingerprint(self, split: str) -> str | None:
        """Fingerprint of the images of a split; None if the run was made by an earlier version, which recorded none."""
        return self.fingerprints.get(split)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of the images of each split."""
        return fingerprints(self.folder)

    @cached_property
    def conditions(self) -> Conditions:
        """`resolved_conditions` of the run, read once."""
        return resolved_conditions(self.folder)

    @property
    def reading(self) -> tuple[Any, ...]:
        """A key that is equal for runs that read the same pixels from the same files."""
        return tuple(self.conditions[option] for option in _READING)

    @property
    def weights(self) -> Path:
        """The file of the student's weights."""
        return self.folder / STUDENT

    @property
    def written_key(self) -> str:
        """Equal for runs that differ only in their seed, if the same version wrote their files."""
        return self._key(identity(dotted(self.tree)))

    @property
    def key(self) -> str:
        """Equal for runs that differ only in their seed. Options that a file lacks have their defaults."""
        return self._key(self.config.identity)

    def _key(self, options: Mapping[str, Any]) -> str:
        """Options and fingerprints as text, without the seed."""
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
    """Runs that differ only in their seed.

    Attributes:
        name: short name, from the folders.
        runs: the runs, by seed.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The finished runs whose accuracy was measured."""
        return tuple(run for run in self.runs if run.measured)

    @property
    def unmeasured(self) -> bool:
        """Whether a run is finished but none has an accuracy: without labels, or of a method without a classifier."""
        return not self.finished and any(run.summary is not None for run in self.runs)

    @property
    def chosen(self) -> Run:
        """The run to ship: the finished run that is best on validation."""
        return max(self.finished or self.runs[:1], key=_validated)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """The quantities that its method logs beside losses."""
        return self.chosen.config.quantities

    @property
    def helps_examples(self) -> bool:
        """Whether its method helps single examples (`disk_kd.tasks.HelpsExamples`)."""
        return issubclass(self.chosen.config.task_class, HelpsExamples)

    @property
    def labels_alone(self) -> bool:
        """Whether it learned from labels alone."""
        config = self.chosen.config
        return config.method == "ce" and config.hint is None

    def values(self, *names: str) -> list[float]:
        """A number of each finished run's summary. The name "split" stands for the split of its results."""
        found = []
        for run in self.finished:
            value: Any = run.summary
            for name in names:
                value = (value or {}).get(run.split if name == "split" else name)
            if value is not None:
                found.append(value)
        return found


def _validated(run: Run) -> float:
    """The accuracy that chose the run's checkpoint."""
    summary = run.summary or {}
    by = summary.get("selection", {}).get("by") or "top1"
    return summary.get("validation", summary.get("test", {})).get(by, -1.0)


def on_same_images(runs: Sequence[Run], split: str) -> bool:
    """Whether runs were measured on the same images of a split.

    Fingerprints decide if two runs read files in the same way, otherwise the options decide.

    Args:
        runs: any number of runs.
        split: "validation" or "test". A run that was measured on it differs from a run that was not.
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
    """The runs in run directories and in folders of run directories, such as the folder of a comparison.

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
    """Groups of runs with the same images that differ only in their seed, in the order of the runs.

    Each group has its own name.
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
    """One group for each row of a comparison. Names are shortened to the parts that distinguish them."""
    names = _short_names([Path(name) for name in rows])
    return [Group(name, tuple(_one_a_seed(members))) for name, members in zip(names, rows.values(), strict=True)]


def _one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """One run for each seed, in the order of seeds. A finished run is preferred to its unfinished copy."""
    by_seed: dict[int, Run] = {}
    for run in runs:
        if run.seed not in by_seed or (run.summary and not by_seed[run.seed].summary):
            by_seed[run.seed] = run
    return [by_seed[seed] for seed in sorted(by_seed)]


def _named_folder(folder: Path) -> Path:
    """The folder that describes a run: the parent of a folder such as seed3."""
    folder = folder.absolute()
    return folder.parent if _SEED_FOLDER.fullmatch(folder.name) else folder


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The fewest last parts of the paths that distinguish them, numbered if two paths are equal."""
    depth = max(len(folder.parts) for folder in folders)
    for parts in range(1, depth + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return [name if names.count(name) == 1 else f"{name} {names[:i].count(name) + 1}" for i, name in enumerate(names)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without incomplete lines."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(new_keys(json.loads(text)))
        except (AttributeError, RecursionError, ValueError):  # incomplete, or not a mapping
            continue
    return lines
