"""Which student to ship, and why: chosen on validation, told on test."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit
from torch import Tensor

from disk_kd.compare.run import interval
from disk_kd.errors import DiskKDError
from disk_kd.report.outputs import Outputs
from disk_kd.report.reading import Group, Run

FEW_SEEDS = 5
"""Shared seeds from which the spread of two groups speaks for itself."""
CHEAPER = 0.95
"""A student counts as cheaper from this share of the multiply-adds on."""


@dataclass(frozen=True)
class Gap:
    """Top-1 of one group less that of another, in points, and half the width of its 95% interval.

    Attributes:
        points, half: of the gap; half is None where nothing measures it.
        by: what the interval is over.
    """

    points: float
    half: float | None
    by: str

    @property
    def level(self) -> bool:
        """Whether the gap could be chance."""
        return self.half is not None and abs(self.points) <= self.half

    def told(self) -> str:
        """In words."""
        return f"{self.numbers()} points ({self.by})"

    def numbers(self) -> str:
        """The gap, and half its interval where there is one."""
        return f"{self.points:+.2f}" + ("" if self.half is None else f" ± {self.half:.2f}")


def ranked(groups: Sequence[Group]) -> list[Group]:
    """The best on validation first; those without a finished run last."""
    return sorted(groups, key=lambda group: -mean_of(group))


def mean_of(group: Group) -> float:
    """The mean top-1 that groups are chosen by: on validation, or on test where there is no validation split."""
    values = group.values("validation", "top1") or group.values("test", "top1")
    return statistics.fmean(values) if values else -1.0


def labels_alone(groups: Sequence[Group], best: Group) -> Group | None:
    """Of the finished groups the one that the labels alone taught, of the student of `best` if there is such a one."""
    found = [group for group in groups if group.finished and group.labels_alone]
    return next((group for group in found if _student(group) == _student(best)), found[0] if found else None)


class Gaps:
    """Differences between groups on the split that they are told on, with what chance there is in them.

    Two groups that share `FEW_SEEDS` seeds or more are paired by seed, by Student's t. Fewer seeds say little of their
    own spread, so that of all groups is pooled, as if it were the same in all. Where no group has two seeds, the runs
    that would be shipped are paired by image, which leaves the chance of the seeds out.

    Args:
        groups: whose spreads are pooled.
        outputs: for pairs of images.
    """

    def __init__(self, groups: Sequence[Group], outputs: Outputs) -> None:
        self.outputs = outputs
        several = [list(tops(group).values()) for group in groups if len(group.finished) > 1]
        self._freedom = sum(len(values) - 1 for values in several)
        squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
        self._deviation = (squares / self._freedom) ** 0.5 if several else None

    def __call__(self, one: Group, other: Group) -> Gap:
        """Top-1 of one group less that of the other."""
        ours, theirs = tops(one), tops(other)
        shared = sorted(ours.keys() & theirs.keys())
        if len(shared) >= FEW_SEEDS:
            points, half = interval([ours[seed] - theirs[seed] for seed in shared])
            return Gap(points, half, f"{len(shared)} seeds, paired")
        points = statistics.fmean(ours.values()) - statistics.fmean(theirs.values())
        if self._deviation is not None:
            error = self._deviation * (1 / len(ours) + 1 / len(theirs)) ** 0.5
            seeds = f"{len(ours)} and {len(theirs)} seeds" if len(ours) != len(theirs) else f"{len(ours)} seeds each"
            half = float(stdtrit(self._freedom, 0.975)) * error
            return Gap(points, half, f"{seeds.replace('1 seeds', '1 seed')}, spread pooled over all runs")
        half_over_images = _half_over_images(one.chosen, other.chosen, self.outputs)
        return Gap(points, half_over_images, "one seed each, paired by image")


def tops(group: Group) -> dict[int, float]:
    """Top-1 of each finished run, by seed."""
    return {run.seed: _top1(run) for run in group.finished}


def _top1(run: Run) -> float:
    assert run.summary is not None
    return run.summary[run.split]["top1"]


def _half_over_images(one: Run, other: Run, outputs: Outputs) -> float | None:
    try:
        hits = [_hits(*outputs.student_logits(run)) for run in (one, other)]
    except (DiskKDError, OSError):
        return None
    if len(hits[0]) != len(hits[1]):
        return None
    return float(1.96 * (hits[0] - hits[1]).std() / len(hits[0]) ** 0.5)


def _hits(logits_NC: Tensor, targets_N: Tensor) -> Tensor:
    """100 where the guess is right, else 0."""
    return 100.0 * (logits_NC.argmax(1) == targets_N).float()


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation, or the one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


@dataclass(frozen=True)
class Verdict:
    """The outcome in words.

    Attributes:
        title: of the report.
        sentence: the outcome.
        reasons: name and text of each.
        chosen: the group to ship; None where no run is finished.
        gaps: of every other candidate to the chosen one, by its name.
    """

    title: str
    sentence: str
    reasons: tuple[tuple[str, str], ...]
    chosen: Group | None
    gaps: dict[str, Gap]


def judge(
    groups: Sequence[Group],
    teachers: Sequence[tuple[str, float, int]],
    outputs: Outputs,
    baseline: Group | None = None,
) -> Verdict:
    """The verdict over the candidates.

    Args:
        groups: those that could be shipped, the best on validation first.
        teachers: name, top-1 on the same split and multiply-adds of each.
        outputs: for intervals over images.
        baseline: what the chosen one is compared with.
    """
    finished = [group for group in groups if group.finished]
    if not finished:
        return Verdict("A run that is not finished", _unfinished(groups), (), None, {})
    best, *others = finished
    measure = Gaps(finished, outputs)
    gaps = {other.name: measure(other, best) for other in others}
    reasons = [("Accuracy", _accuracy(best))]
    if others:
        reasons.append(("Against the others", _against(others, gaps)))
        if baseline is not None and baseline is not best:
            title = "Against labels alone" if baseline.labels_alone else "Against the baseline"
            reasons.append((title, _baseline(best, baseline, gaps[baseline.name])))
    reasons += [("Against the teacher", _teacher(best, *teacher)) for teacher in teachers]
    reasons.append(("Honest probabilities", _calibration(best)))
    smaller = _smaller(best, others, gaps)
    if smaller:
        reasons.append(("Where size matters", smaller))
    reasons.append(("The file", str(_shipped(best))))
    title = "Which student to ship" if others else f"{_student(best)} by {best.chosen.config.method}"
    return Verdict(title, _sentence(best, others, gaps), tuple(reasons), best, gaps)


def _sentence(best: Group, others: Sequence[Group], gaps: dict[str, Gap]) -> str:
    run = best.chosen
    assert run.summary is not None
    top1 = spread(best.values("split", "top1"), 2)
    size = f"{run.summary['parameters']:,} parameters"
    if not others:
        return f"{_student(best)} ({best.name}) reaches {top1}% top-1 on {run.split} with {size}."
    level = sum(gap.level for gap in gaps.values())
    are = {0: "none of the others is", 1: "one of the others is"}.get(level, f"{level} of the others are")
    tail = f"; {are} level with it within chance"
    return f"Ship {best.name}: {top1}% top-1 on {run.split} with {size}, the best on {_chosen_on(run)}{tail}."


def _chosen_on(run: Run) -> str:
    return "validation" if run.summary and "validation" in run.summary else "test, as there is no validation split"


def _accuracy(best: Group) -> str:
    seeds, run = best.values("split", "top1"), best.chosen
    text = f"{spread(seeds, 2)}% top-1 on {run.split}, {_over(len(seeds))}"
    validation = best.values("validation", "top1")
    if validation and run.split == "test":
        text += f"; {spread(validation, 2)}% on validation, which chose it and its checkpoint: the test split did not"
    return f"{text}."


def _over(seeds: int) -> str:
    return "one seed: another seed would differ" if seeds == 1 else f"mean ± deviation of {seeds} seeds"


def _against(others: Sequence[Group], gaps: dict[str, Gap]) -> str:
    nearest = others[0]
    text = f"Next on validation is {nearest.name}, {gaps[nearest.name].told()} on {nearest.chosen.split}."
    level = [other.name for other in others if gaps[other.name].level]
    if not level:
        return f"{text} None of the {len(others)} others is level with it within chance."
    more = f" and {len(level) - 6} more" if len(level) > 6 else ""
    return (
        f"{text} Level with it within chance: {', '.join(level[:6])}{more}. Between these, choose by cost or honesty."
    )


def _baseline(best: Group, baseline: Group, gap: Gap) -> str:
    gain = Gap(-gap.points, gap.half, gap.by)
    chance = ", which could be chance" if gap.level else ""
    alone = ", trained on the labels alone" if baseline.labels_alone else ""
    return f"{best.name} gains {gain.told()} over {baseline.name}{alone}{chance}."


def _teacher(best: Group, name: str, top1: float, multiply_adds: int) -> str:
    own = statistics.fmean(best.values("split", "top1"))
    share = best.values("multiply_adds")[0] / multiply_adds
    times = f"{1 / share:.1f} times fewer" if share < 1 else "no fewer"
    return f"{name} has {top1:.2f}%: the student is {top1 - own:.2f} points below, at {times} multiply-adds an image."


def _calibration(best: Group) -> str:
    run = best.chosen
    nll, ece = (best.values("split", name) for name in ("nll", "ece"))
    text = f"NLL {spread(nll, 3)} nats, ECE {spread(ece, 3)}."
    temperature = (run.summary or {})[run.split].get("temperature")
    if temperature is None:
        return text
    if abs(temperature - 1) < 0.1:
        return f"{text} The temperature that suits validation best is {temperature:.2f}: they need no scaling."
    after = (run.summary or {})[run.split]
    return (
        f"{text} {'Over' if temperature > 1 else 'Under'}-confident as it is: divide the shipped file's logits by"
        f" {temperature:.2f} (fitted on validation) and its NLL goes from {after['nll']:.3f} to"
        f" {after['nll_scaled']:.3f}, its ECE from {after['ece']:.3f} to {after['ece_scaled']:.3f}."
    )


def _smaller(best: Group, others: Sequence[Group], gaps: dict[str, Gap]) -> str:
    """The most accurate of the candidates that cost less."""
    cost = best.values("multiply_adds")[0]
    cheaper = [other for other in others if other.values("multiply_adds")[0] < CHEAPER * cost]
    if not cheaper:
        return ""
    other = cheaper[0]
    share = other.values("multiply_adds")[0] / cost
    return f"{other.name} takes {share:.0%} of the multiply-adds, at {gaps[other.name].told()} top-1."


def _shipped(best: Group) -> str:
    which = f" (seed {best.chosen.seed}, the best of its seeds on validation)" if len(best.finished) > 1 else ""
    return "/".join(best.chosen.weights.absolute().parts[-3:]) + which


def _student(group: Group) -> str:
    return group.chosen.config.student.name


def _unfinished(groups: Sequence[Group]) -> str:
    run = groups[0].chosen
    done = run.student_lines[-1]["passes"] if run.student_lines else 0
    return (
        f"{groups[0].name} is not finished: {done:.0f} of {run.config.train.passes} student passes are done."
        " What its log tells is below; disk-kd distill RUN/config.yaml --resume goes on."
    )
