"""The content of a report: the students to choose from, their teachers, and which of them figures show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from disk_kd.build import find_weights
from disk_kd.config import RunConfig
from disk_kd.errors import DiskKDError
from disk_kd.metrics import Metrics, metrics_of
from disk_kd.report.drawing import MOST, Series
from disk_kd.report.items import Note
from disk_kd.report.outputs import Outputs, teacher_key
from disk_kd.report.reading import Group, Run
from disk_kd.report.verdict import Gap, Verdict, first_of, gap_between, judge, labels_alone, ranked, ranking_split

Value = TypeVar("Value")


@dataclass(frozen=True)
class ReportTeacher:
    """A teacher that one of the runs names.

    Attributes:
        name: name in tables and legends.
        config: configuration of a run that names it.
        run: a run on whose split the teacher is measured.
        member: whether the teacher is one of several that a run learned from together.
    """

    name: str
    config: RunConfig
    run: Run
    member: bool = False


@dataclass(frozen=True)
class TeacherFacts:
    """Measurements of a teacher, on the split of the runs' test results."""

    metrics: Metrics
    parameters: int
    multiply_adds: int


class ReportContent:
    """The runs of a report, and everything that its sections share.

    Attributes:
        candidates: the groups to choose from, in the order of `ranked`.
        comparable: whether the finished candidates were measured on the same images.
        shown: the candidates that figures show.
        series: their places in figures, by name.
        lost: reasons why teachers of candidates are not among `teachers`.

    Args:
        groups: one or more groups of runs that differ only in their seed.
        outputs: gives data, models and their logits.
        baseline: name of the group that the others are compared with; None: the group that learned from labels alone.
        differing: text of `conditions_text` for the runs; None: it is made from the runs.
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
        """Description of the first candidate."""
        return first_of(self.candidates)

    @property
    def has_top5(self) -> bool:
        """Whether there are enough classes for top-5 to be informative."""
        return any((group.chosen.summary or {}).get("classes", 6) > 5 for group in self.finished)

    @property
    def finished(self) -> list[Group]:
        """The candidates with a finished run."""
        return [group for group in self.candidates if group.finished]

    @cached_property
    def teachers(self) -> list[ReportTeacher]:
        """The teachers of the candidates whose weights exist; the members of an ensemble come last."""
        found: dict[object, ReportTeacher] = {}
        named = [(group.chosen.config, group.chosen, False) for group in self.candidates]
        several = [(config, run) for config, run, _ in named if len(config.each_teacher) > 1]
        named += [(one, run, True) for config, run in several for one in config.each_teacher]
        names: Counter[str] = Counter()
        for config, run, member in named:
            key = None if config.teacher is None else self.attempt(partial(teacher_key, config))
            if isinstance(key, Note):
                self.lost.append(key)
            if config.teacher is None or isinstance(key, Note) or key in found:
                continue
            name = f"teacher {config.teacher.name}"
            names[name] += 1
            shown = f"{name} ({names[name]})" if names[name] > 1 else name
            found[key] = ReportTeacher(shown, config, run, member)
        return list(found.values())

    def teacher_of(self, group: Group) -> ReportTeacher:
        """The group's teacher. If its method has none, the only teacher of the report.

        Raises:
            DiskKDError: its weights are missing; or it has no teacher and the report has none or several.
        """
        config = group.chosen.config
        if config.teacher is not None:
            key = teacher_key(config)
            return next(teacher for teacher in self.teachers if teacher_key(teacher.config) == key)
        whole = [teacher for teacher in self.teachers if not teacher.member]
        if len(whole) != 1:
            count = "no run of this report has one" if not whole else "the runs of this report have several"
            raise DiskKDError(f"{group.name} was trained without a teacher, and {count}")
        return whole[0]

    @cached_property
    def measured_teachers(self) -> list[tuple[ReportTeacher, TeacherFacts | Note]]:
        """The teachers with their measurements, or the reason why there are none. Empty before a run is finished."""
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
        """The finished group that the others are compared with: the requested one, else that of labels alone."""
        if not self.finished:
            return None
        named = next((group for group in self.finished if group.name == self._baseline), None)
        return named or labels_alone(self.finished, self.finished[0])

    @cached_property
    def gains(self) -> dict[str, Gap]:
        """Gap of each other finished group to the baseline, by name. Empty if there is no baseline."""
        base = self.baseline
        if base is None or not self.comparable:
            return {}
        return {group.name: gap_between(group, base, self.outputs) for group in self.finished if group is not base}

    def attempt(self, make: Callable[[], Value]) -> Value | Note:
        """The result of `make`, or a note that states why it failed."""
        try:
            return make()
        except (DiskKDError, OSError) as error:
            return Note(f"Not shown: {error}.", missing=True)


def _is_teacher(group: Group, groups: Sequence[Group]) -> bool:
    """Whether another group learned from a run of this one."""
    own = {run.weights.resolve() for run in group.runs}
    for other in groups:
        config = other.chosen.config
        if other is group or config.teacher is None:
            continue
        with suppress(DiskKDError):  # a teacher whose weights are gone is none of these runs
            files = [find_weights(one, "teacher") for one in config.each_teacher]
            if any(weights is not None and weights.resolve() in own for weights in files):
                return True
    return False


def _shown(groups: Sequence[Group]) -> list[Group]:
    """The groups that figures show, the best first, at most as many as fit.

    The first group whose method logs its own quantities and the first that learned from labels alone are always shown.
    """
    logs = next((group for group in groups if group.quantities), None)
    wanted = [group for group in (logs, labels_alone(groups, groups[0])) if group is not None]
    others = [group for group in groups if group not in wanted]
    kept = [*wanted, *others[: MOST - len(wanted)]]
    return [group for group in groups if group in kept]
