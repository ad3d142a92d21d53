"""Which student to ship, and why. It is chosen on validation and measured on test."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from disk_kd.comparison.gain import differences, interval
from disk_kd.errors import DiskKDError
from disk_kd.report.outputs import Outputs
from disk_kd.report.reading import Group, Run, on_same_images

CHEAPER = 0.95
"""Maximum share of the multiply-adds of another student at which a student counts as cheaper."""
_SURE = 1.92
"""Minimum gain in log-likelihood, in nats, at which one fitted parameter is significant: half the 95 % quantile of the
chi-squared distribution with one degree of freedom."""
_ORDER = {"validation": "the best on validation", "test": "the best on test", None: "the first"}
"""Description of the first group, by the split that ranks the groups."""


@dataclass(frozen=True)
class Gap:
    """Top-1 of one group minus top-1 of another, in points.

    Attributes:
        points: the difference.
        half: half the width of its 95 % confidence interval over seeds; None if fewer than two seeds are shared.
        by: the seeds that are compared, in words.
        half_over_images: half the width of the interval over the images of the split, for a single shared seed.
    """

    points: float
    half: float | None
    by: str
    half_over_images: float | None = None

    @property
    def tie(self) -> bool:
        """Whether the gap is inside its confidence interval. A gap without an interval counts as a tie."""
        half = self.half_over_images if self.half is None else self.half
        return half is None or abs(self.points) <= half

    def text(self) -> str:
        """The gap with its interval, in words."""
        images = (
            ""
            if self.half_over_images is None
            else f", ± {self.half_over_images:.2f} over images, without seed variance"
        )
        return f"{self.numbers()} points ({self.by}{images})"

    def numbers(self) -> str:
        """The gap and half its interval over seeds, if there is one. The table of a comparison has the same numbers."""
        return f"{self.points:+.2f}" + ("" if self.half is None else f" ± {self.half:.2f}")


def ranking_split(groups: Sequence[Group]) -> str | None:
    """The split that can rank the groups: "validation", else "test"; None if they were measured on different images."""
    runs = [run for group in groups for run in group.finished]
    if not on_same_images(runs, "test"):
        return None
    if on_same_images(runs, "validation") and all(run.images_of("validation") for run in runs):
        return "validation"
    return "test" if all(run.images_of("test") for run in runs) else None


def ranked(groups: Sequence[Group]) -> list[Group]:
    """The groups by top-1 on `ranking_split`, the best first. Groups without a finished run come last."""
    split = ranking_split(groups)
    return sorted(groups, key=lambda group: (not group.finished, -_mean(group, split)))


def _mean(group: Group, split: str | None) -> float:
    values = group.values(split, "top1") if split else []
    return statistics.fmean(values) if values else 0.0


def labels_alone(groups: Sequence[Group], best: Group) -> Group | None:
    """The finished group that learned from labels alone, preferably with the student of `best`; None: no group."""
    found = [group for group in groups if group.finished and group.labels_alone]
    return next((group for group in found if _student(group) == _student(best)), found[0] if found else None)


def gap_between(one: Group, other: Group, outputs: Outputs) -> Gap:
    """Top-1 of one group minus top-1 of the other, on the split of their test results, paired by seed.

    A single shared seed has no interval over seeds. Its two runs are then paired by image, which ignores seed variance.

    Args:
        one: the first group.
        other: the second group, measured on the same images.
        outputs: gives the predictions that are paired by image.
    """
    ours, theirs = tops(one), tops(other)
    paired = differences(ours, theirs)
    if not paired:
        return Gap(statistics.fmean(ours.values()) - statistics.fmean(theirs.values()), None, "no seed in common")
    points, half = interval(paired)
    if half is not None:
        return Gap(points, half, f"{len(paired)} seeds, paired")
    seed = next(seed for seed in ours if seed in theirs)
    first, second = (next(run for run in group.finished if run.seed == seed) for group in (one, other))
    return Gap(points, None, "one seed", _half_over_images(first, second, outputs))


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
    """100 for each correct prediction, 0 for each wrong one."""
    return 100.0 * (logits_NC.argmax(1) == targets_N).float()


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; a single value has no deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


@dataclass(frozen=True)
class Verdict:
    """The outcome in words.

    Attributes:
        title: title of the report.
        sentence: the outcome in one sentence.
        reasons: title and text of each reason.
        chosen: the group to ship, or the group whose details are shown if none can be chosen; None if no run is
            finished.
        gaps: gap of each other candidate to the chosen group, by name; empty if they were measured on different images.
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
        groups: the candidates, in the order of `ranked`.
        teachers: name, top-1 on the same split, and multiply-adds of each teacher.
        outputs: gives the predictions for intervals over images.
        baseline: the group that the chosen group is compared with.
    """
    finished = [group for group in groups if group.finished]
    if not finished:
        title = "A run without accuracy" if groups[0].unmeasured else "An unfinished run"
        return Verdict(title, _unfinished(groups), (), None, {})
    best, *others = finished
    by = ranking_split(finished)
    gaps = {other.name: gap_between(other, best, outputs) for other in others} if by else {}
    reasons = [("Accuracy", _accuracy(best))]
    if others and by != "validation":
        reasons.append(("How it was chosen", _without_validation(finished, by)))
    if gaps:
        reasons.append(("Compared with the others", _against(others, gaps)))
        if baseline is not None and baseline is not best:
            title = "Compared with labels alone" if baseline.labels_alone else "Compared with the baseline"
            reasons.append((title, _baseline(best, baseline, gaps[baseline.name])))
    reasons += [("Compared with the teacher", _teacher(best, *teacher)) for teacher in teachers]
    reasons.append(("Calibration", _calibration(best)))
    smaller = _smaller(best, others, gaps) if gaps else ""
    if smaller:
        reasons.append(("A smaller student", smaller))
    reasons.append(("The file", _shipped(best)))
    title = "Which student to ship" if others else f"{_student(best)} by {best.chosen.config.method}"
    return Verdict(title, _sentence(best, others, gaps, by), tuple(reasons), best, gaps)


def _sentence(best: Group, others: Sequence[Group], gaps: dict[str, Gap], by: str | None) -> str:
    run = best.chosen
    assert run.summary is not None
    top1 = f"{spread(best.values('split', 'top1'), 2)}% top-1 on {run.split}"
    if len(best.finished) > 1:
        top1 += f" over {len(best.finished)} seeds, {_top1(run):.2f}% for the shipped file,"
    size = f"{run.summary['parameters']:,} parameters"
    if not others:
        return f"{_student(best)} ({best.name}) reaches {top1} with {size}."
    if by is None:
        return (
            "No student can be chosen, because the runs were measured on different images. The details below describe"
            f" {best.name}: {top1} with {size}."
        )
    ties = sum(gap.tie for gap in gaps.values())
    tail = f"; {ties} of the {len(others)} others tie with it" if ties else ""
    return f"Ship {best.name}: {top1} with {size}, {_ORDER[by]}{tail}."


def first_of(groups: Sequence[Group]) -> str:
    """Description of the first group of `ranked`."""
    return _ORDER[ranking_split(groups)]


def _without_validation(groups: Sequence[Group], by: str | None) -> str:
    """The reason why validation does not rank the groups, and what follows from it."""
    if by is None:
        return "Runs that were measured on different images cannot be ranked."
    validated = any(run.images_of("validation") for group in groups for run in group.finished)
    why = (
        "The runs have different validation images (data.validation, data.split_seed or the data differ)"
        if validated
        else "No run has a validation split"
    )
    return f"{why}, so test accuracy ranks them. The best of them is then too optimistic; measure it on new images."


def _accuracy(best: Group) -> str:
    seeds, run = best.values("split", "top1"), best.chosen
    text = f"{spread(seeds, 2)}% top-1 on {run.split}, {_over(len(seeds))}"
    validation = best.values("validation", "top1")
    if validation and run.split == "test":
        text += f"; {spread(validation, 2)}% on validation, which chose the checkpoint"
    return f"{text}."


def _over(seeds: int) -> str:
    return (
        "one seed; other seeds will give other values" if seeds == 1 else f"mean ± standard deviation of {seeds} seeds"
    )


def _against(others: Sequence[Group], gaps: dict[str, Gap]) -> str:
    nearest = others[0]
    text = f"The next is {nearest.name}: {gaps[nearest.name].text()} on {nearest.chosen.split}."
    ties = [other.name for other in others if gaps[other.name].tie]
    if not ties:
        return f"{text} Every difference is larger than its interval."
    more = f" and {len(ties) - 6} more" if len(ties) > 6 else ""
    return f"{text} These tie with the chosen student: {', '.join(ties[:6])}{more}. Choose among them by cost."


def _baseline(best: Group, baseline: Group, gap: Gap) -> str:
    gain = Gap(-gap.points, gap.half, gap.by)
    tie = ", which counts as a tie" if gap.tie else ""
    alone = ", trained on the labels alone" if baseline.labels_alone else ""
    return f"{best.name} gains {gain.text()} over {baseline.name}{alone}{tie}."


def _teacher(best: Group, name: str, top1: float, multiply_adds: int) -> str:
    own = statistics.fmean(best.values("split", "top1"))
    gap = f"{abs(top1 - own):.2f} points {'lower' if own <= top1 else 'higher'}"
    if not multiply_adds:  # of a teacher that runs outside torch
        return f"{name} has {top1:.2f}%. The student is {gap}."
    share = best.values("multiply_adds")[0] / multiply_adds
    cost = f"{1 / share:.1f} times fewer" if share < 1 else "no fewer"
    return f"{name} has {top1:.2f}%. The student is {gap} and needs {cost} multiply-adds per image."


def _calibration(best: Group) -> str:
    run = best.chosen
    summary = run.summary or {}
    text = " ".join(
        f"{name.upper()} {spread(best.values('split', name), 3)}{unit}"
        for name, unit in (("nll", " nats,"), ("ece", "."))
    )
    before, validation = summary[run.split], summary.get("validation", {})
    if "nll_scaled" not in validation or "nll_scaled" not in before:
        return text
    gain = validation["samples"] * (validation["nll"] - validation["nll_scaled"])
    if gain <= _SURE:
        return f"{text} Temperature scaling brings no significant gain on {validation['samples']:,} validation images."
    change = (
        f"test NLL changes from {before['nll']:.3f} to {before['nll_scaled']:.3f}, test ECE from"
        f" {before['ece']:.3f} to {before['ece_scaled']:.3f}"
    )
    divided = f"the logits of the shipped file by {before['temperature']:.2f} (fitted on validation)"
    if before["nll_scaled"] >= before["nll"]:
        return f"{text} Do not divide {divided}: {change}."
    kind = "over" if before["temperature"] > 1 else "Under"
    return f"{text} The student is {kind}-confident. Divide {divided}: {change}."


def _smaller(best: Group, others: Sequence[Group], gaps: dict[str, Gap]) -> str:
    """The most accurate candidate that costs less; empty if there is none."""
    cost = best.values("multiply_adds")[0]
    cheaper = [other for other in others if other.values("multiply_adds")[0] < CHEAPER * cost]
    if not cheaper:
        return ""
    other = cheaper[0]
    share = other.values("multiply_adds")[0] / cost
    return f"{other.name} needs {share:.0%} of the multiply-adds. Its top-1 differs by {gaps[other.name].text()}."


def _shipped(best: Group) -> str:
    run, path = best.chosen, "/".join(best.chosen.weights.absolute().parts[-3:])
    if len(best.finished) == 1:
        return f"{path}: {_top1(run):.2f}% top-1 on {run.split}."
    prefers = "its best seed on validation" if run.images_of("validation") else "its best seed on test"
    mean = spread(best.values("split", "top1"), 2)
    return f"{path} (seed {run.seed}, {prefers}): {_top1(run):.2f}% top-1 on {run.split}; all its seeds: {mean}%."


def _student(group: Group) -> str:
    return group.chosen.config.student.name


def _unfinished(groups: Sequence[Group]) -> str:
    run = groups[0].chosen
    if groups[0].unmeasured:
        return (
            f"The accuracy of {groups[0].name} was not measured: there are no validation or test images, or the method"
            " does not train the student's classifier. Its log is shown below. disk-kd probe RUN fits a classifier, and"
            " disk-kd evaluate RUN --data.root FOLDER measures a student that has one."
        )
    done = run.student_lines[-1]["epochs"] if run.student_lines else 0
    return (
        f"{groups[0].name} is not finished: {done:.0f} of {run.config.train.epochs} student epochs are done."
        " Its log is shown below. Resume it with: disk-kd distill RUN/config.yaml --resume"
    )
