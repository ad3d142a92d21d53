"""The content of a report: the students to choose from, their teachers, and which of them figures show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from disk_kd.build import find_weights
from disk_kd.config import RunConfig
from disk_kd.errors import DiskKDError
from disk_kd.metrics import Metrics
from disk_kd.report.drawing import MOST, Series
from disk_kd.report.items import Note
from disk_kd.report.outputs import Outputs, metrics_of, teacher_key
from disk_kd.report.reading import Group, Run
from disk_kd.report.verdict import Gap, Verdict, first_of, gap_between, judge, labels_alone, ranked, ranking_split

Value = TypeVar("Value")


@dataclass(frozen=True)
class ReportTeacher:
    """A teacher, as one of the runs names it.

    Attributes:
        name: for tables and legends.
        config: of a run that names it.
        run: a run on whose split it is measured.
    """

    name: str
    config: RunConfig
    run: Run


@dataclass(frozen=True)
class TeacherFacts:
    """Measurements of a teacher, on the split of the runs' test results."""

    metrics: Metrics
    parameters: int
    multiply_adds: int


class ReportContent:
    """The runs of a report, with what all its sections share.

    Attributes:
        candidates: the groups that could be shipped, as `ranked` has them.
        comparable: whether the finished ones were measured on the same images.
        shown: those of them that figures show.
        series: their places in figures, by name.
        lost: why teachers that the candidates name are not among `teachers`.

    Args:
        groups: one or more, each of runs that differ in their seed alone.
        outputs: gives data, models and their logits.
        baseline: name of the group that the others are compared with; None: that of the labels alone, if any.
        differing: what `conditions_text` says of the runs; None: it is asked.
    """

    def __init__(
        self, groups: Sequence[Group], outputs: Outputs, baseline: str | None = None, differing: str | None = None
    ) -> None:
        self.outputs, self.differing = outputs, differing
        self.lost: list[Note] = []
        self.candidates = ranked([group for group in groups if not _is_teacher(group, groups)] or groups)
        self.comparable = ranking_split(self.candidates) is not None
        self.shown = _shown(self.candidates)
        self.series = {group.name: Series(group.name, i) for i, group in enumerate(self.shown)}
        self._baseline = baseline

    @property
    def first(self) -> str:
        """What the first of the candidates is, in words."""
        return first_of(self.candidates)

    @property
    def has_top5(self) -> bool:
        """Whether there are so many classes that top-5 says something."""
        return any((group.chosen.summary or {}).get("classes", 6) > 5 for group in self.finished)

    @property
    def finished(self) -> list[Group]:
        """The candidates with a finished run."""
        return [group for group in self.candidates if group.finished]

    @cached_property
    def teachers(self) -> list[ReportTeacher]:
        """The teachers that the candidates name and whose weights are there."""
        found: dict[object, ReportTeacher] = {}
        for group in self.candidates:
            config = group.chosen.config
            key = None if config.teacher is None else self.attempt(partial(teacher_key, config))
            if isinstance(key, Note):
                self.lost.append(key)
            if config.teacher is None or isinstance(key, Note) or key in found:
                continue
            name = f"teacher {config.teacher.name}"
            same = sum(teacher.name.startswith(name) for teacher in found.values())
            found[key] = ReportTeacher(f"{name} ({same + 1})" if same else name, config, group.chosen)
        return list(found.values())

    def teacher_of(self, group: Group) -> ReportTeacher:
        """The group's teacher, or the only one of the report where its method has none.

        Raises:
            DiskKDError: its weights are missing; or it has none, and the report not one for all.
        """
        config = group.chosen.config
        if config.teacher is not None:
            key = teacher_key(config)
            return next(teacher for teacher in self.teachers if teacher_key(teacher.config) == key)
        if len(self.teachers) != 1:
            count = "no run of this report has one" if not self.teachers else "the runs here have several"
            raise DiskKDError(f"{group.name} was trained without a teacher, and {count}")
        return self.teachers[0]

    @cached_property
    def measured_teachers(self) -> list[tuple[ReportTeacher, TeacherFacts | Note]]:
        """The teachers and what is measured of them, or why it is not; none before a run is finished."""
        if not self.finished:
            return []
        found = []
        for teacher in self.teachers:
            found.append((teacher, self.attempt(partial(self._measure, teacher))))
        return found

    def _measure(self, teacher: ReportTeacher) -> TeacherFacts:
        metrics = metrics_of(*self.outputs.teacher_logits(teacher.config, teacher.run))
        return TeacherFacts(metrics, *self.outputs.teacher_sizes(teacher.config, teacher.run))

    @cached_property
    def verdict(self) -> Verdict:
        """Which student to ship, and why."""
        own = self.attempt(lambda: self.teacher_of(self.finished[0])) if self.finished else None
        known = [
            (f"The {teacher.name}", facts.metrics.top1, facts.multiply_adds)
            for teacher, facts in self.measured_teachers
            if teacher is own and not isinstance(facts, Note)
        ]
        return judge(self.candidates, known, self.outputs, self.baseline)

    @cached_property
    def baseline(self) -> Group | None:
        """The finished group that the others are compared with: the one asked for, else that of the labels alone."""
        if not self.finished:
            return None
        named = next((group for group in self.finished if group.name == self._baseline), None)
        return named or labels_alone(self.finished, self.finished[0])

    @cached_property
    def gains(self) -> dict[str, Gap]:
        """Of every other finished group over the baseline, by name; none where there is no baseline."""
        base = self.baseline
        if base is None or not self.comparable:
            return {}
        return {group.name: gap_between(group, base, self.outputs) for group in self.finished if group is not base}

    def attempt(self, make: Callable[[], Value]) -> Value | Note:
        """What `make` gives, or the line that says why it cannot."""
        try:
            return make()
        except (DiskKDError, OSError) as error:
            return Note(f"Left out: {error}.", missing=True)


def _is_teacher(group: Group, groups: Sequence[Group]) -> bool:
    """Whether another group learned from a run of this one."""
    own = {run.weights.resolve() for run in group.runs}
    for other in groups:
        config = other.chosen.config
        if other is group or config.teacher is None:
            continue
        with suppress(DiskKDError):  # a teacher whose weights are gone is none of these runs
            weights = find_weights(config, "teacher")
            if weights is not None and weights.resolve() in own:
                return True
    return False


def _shown(groups: Sequence[Group]) -> list[Group]:
    """As many groups as a figure can show, the best first.

    The first whose method logs quantities of its own, and the first that learned from labels alone, are always shown.
    """
    logs = next((group for group in groups if group.quantities), None)
    wanted = [group for group in (logs, labels_alone(groups, groups[0])) if group is not None]
    others = [group for group in groups if group not in wanted]
    kept = [*wanted, *others[: MOST - len(wanted)]]
    return [group for group in groups if group in kept]
