"""Settings of the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from disk_kd.errors import ConfigError
from disk_kd.models.settings import ModelSettings, with_own_weights
from disk_kd.options import environment, loaded, read, read_options
from disk_kd.teacher.ensemble import AnyTeacher, Combine, Ensemble
from disk_kd.teacher.frozen import Teacher

MEMBERS = "members"
"""The option that names several teachers."""


@dataclass(frozen=True)
class TeacherSettings(ModelSettings):
    """The trained model to learn from. Methods without a teacher ignore it.

    Args:
        image_size: Side in pixels of the images that the teacher gets. null takes the size that the file of weights
            records, else the student's size.
        precision: Precision of the teacher: fp32, or autocast to bf16 or fp16. auto takes bf16 on an accelerator, else
            fp32.
        store: Run the teacher once over all views and store its outputs in RUNS/teacher-store. All runs with the same
            teacher, data and augmentation share them. The size is 2 bytes for each class, sample and view, and 2 bytes
            for each number of a feature map that the method reads. false runs the teacher in every step. auto stores
            the outputs if views repeat or if all views take at most 1 GiB, and if the disk has room; without data.views
            it gives as many epochs as possible their own view. The run's config.yaml records the decision.
        classes: The teacher's classes, if they are others than the data's: a mapping from each class of the data to one
            class of the teacher or a list of them, each by name, WordNet id or number. The probabilities of several are
            added; classes that are not named are left out. auto matches names and WordNet ids. null: the teacher has
            the classes of the data, in the same order.
        weight: Weight of this teacher among several (teacher.members).
        store_top_k: Store only the K largest logits of each sample (4 bytes each) and the sum of the others. It pays
            with a thousand classes or more; `disk-kd store-teacher` prints the error. null stores all logits.
    """

    name: str = "cifar_resnet10_l"
    image_size: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    store: Literal["auto"] | bool = environment("auto")
    store_top_k: int | None = None
    classes: Literal["auto"] | dict[str, int | str | list[int | str]] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        with_own_weights(self)
        if self.image_size is not None and not 1 <= self.image_size <= 10_000:
            raise ConfigError(f"teacher.image_size must be from 1 to 10,000, or null, not {self.image_size}")
        if self.store_top_k is not None and self.store_top_k < 1:
            raise ConfigError(f"teacher.store_top_k must be at least 1 or null, not {self.store_top_k}")
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"teacher.weight must be above 0 and finite, not {self.weight}")

    @property
    def each(self) -> tuple[TeacherSettings, ...]:
        """The settings of each teacher: these."""
        return (self,)

    @property
    def average(self) -> tuple[Any, ...]:
        """How the teachers are averaged: nothing, for one."""
        return ()

    def changed(self, change: Callable[[TeacherSettings], TeacherSettings]) -> TeacherSettings:
        """The same settings with a change to each teacher."""
        return change(self)

    def join(self, members: Sequence[Teacher]) -> AnyTeacher:
        """The teacher that is made of these settings."""
        return members[0]


@dataclass(frozen=True)
class EnsembleSettings:
    """Several teachers, whose predictions are averaged.

    Args:
        members: Several teachers, a list of mappings with the options above: '[{name: a, weights: F}, {name: b}]'.
            --teacher '[...]' is short for it. Each has its own resolution, precision, classes and store. Methods and
            hints that read features need one teacher.
        combine: What is averaged over several teachers: logits (geometric mean of the probabilities) or probabilities
            (arithmetic mean).
        store: As for one teacher; it holds for all members.
    """

    members: tuple[TeacherSettings, ...]
    combine: Combine = "logits"
    store: Literal["auto"] | bool = environment("auto")

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ConfigError(f"teacher.members must list two teachers or more, not {len(self.members)}")

    @property
    def name(self) -> str:
        """The names of the members."""
        return " + ".join(member.name for member in self.members)

    @property
    def each(self) -> tuple[TeacherSettings, ...]:
        """The settings of each teacher, with the storing of all."""
        return tuple(replace(member, store=self.store) for member in self.members)

    @property
    def average(self) -> tuple[Any, ...]:
        """How the teachers are averaged: by what, and with which weights."""
        return (self.combine, *(member.weight for member in self.members))

    def changed(self, change: Callable[[TeacherSettings], TeacherSettings]) -> EnsembleSettings:
        """The same settings with a change to each teacher."""
        return replace(self, members=tuple(map(change, self.members)))

    def join(self, members: Sequence[Teacher]) -> AnyTeacher:
        """The ensemble of these teachers."""
        return Ensemble(members, [member.weight for member in self.members], self.combine)


AnyTeacherSettings = TeacherSettings | EnsembleSettings
"""Settings of one teacher or of several: `name`, `each`, `average`, `changed`, `join` and `store` are the same."""


def read_teacher(tree: Mapping[str, Any]) -> AnyTeacherSettings:
    """The settings of a teacher, or of several if the mapping has the option `members`.

    Raises:
        ConfigError: an unknown option, a value of the wrong type or out of range, or an option of one teacher beside
            `members`.
    """
    if MEMBERS not in tree:
        if "combine" in tree:
            raise ConfigError("teacher.combine is for several teachers; give teacher.members too")
        return read(TeacherSettings, tree, "teacher")
    ours, of_one = {entry.name for entry in fields(EnsembleSettings)}, {entry.name for entry in fields(TeacherSettings)}
    for key in tree.keys() - ours:
        if key in of_one:
            raise ConfigError(f"teacher.{key} is an option of one teacher; give it inside teacher.members")
    members = tuple(_member(member, number) for number, member in enumerate(_listed(tree[MEMBERS])))
    others = {key: value for key, value in tree.items() if key != MEMBERS}
    return EnsembleSettings(members, **read_options(EnsembleSettings, others, "teacher", (MEMBERS,)))


def _member(member: Any, number: int) -> TeacherSettings:
    if isinstance(member, TeacherSettings):
        return member
    tree = {"name": member} if isinstance(member, str) else member
    where = f"teacher.{MEMBERS}.{number}"
    if isinstance(tree, Mapping) and "store" in tree:
        raise ConfigError(f"{where}.store: all teachers are stored, or none; give teacher.store beside members")
    return read(TeacherSettings, tree, where)


def _listed(members: Any) -> Sequence[Any]:
    if isinstance(members, str):
        members = loaded(members)
    if not isinstance(members, list | tuple):
        raise ConfigError(f"teacher.members must be a list such as [{{name: a}}, {{name: b}}], not {members!r}")
    return members
