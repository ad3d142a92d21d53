"""The sections on predictions: calibration, selective prediction, agreement with the teacher, classes, confusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from disk_kd.errors import DataError
from disk_kd.metrics import metrics_of
from disk_kd.report.content import ReportContent
from disk_kd.report.drawing import Series
from disk_kd.report.figures import class_accuracies, reliability_diagram, risk_coverage_curve
from disk_kd.report.items import Figure, Figures, Item, Note, Section, Table
from disk_kd.report.measures import agreement, class_accuracy, lost_pairs, reliability, risk_coverage
from disk_kd.report.reading import Group

Predicted = dict[Series, tuple[Tensor, Tensor]]
"""Logits and targets by series. The teachers come last."""

_MOST_AT_AN_END = 10
"""Number of classes drawn at each end: with the largest and the smallest loss of accuracy."""
LEAST_IN_BIN = 10
"""Minimum number of images in a bin that is drawn. The accuracy of smaller bins is mostly noise."""


def predicted(content: ReportContent) -> tuple[Predicted, list[Note]]:
    """Predictions of the chosen runs and their teachers on the split, and notes on missing ones."""
    found: Predicted = {}
    notes: list[Note] = []
    for group in content.shown:
        if not group.finished:
            continue
        outputs = content.attempt(partial(content.outputs.student_logits, group.chosen))
        if isinstance(outputs, Note):
            notes.append(outputs)
            continue
        found[content.series[group.name]] = outputs
        differing = _differs(group, *outputs)
        notes += [differing] if differing else []
    for teacher in content.teachers if found else ():
        outputs = content.attempt(partial(content.outputs.teacher_logits, teacher.config, teacher.run))
        if isinstance(outputs, Note):
            notes.append(outputs)
        else:
            found[Series(teacher.name, None)] = outputs
    return found, list(dict.fromkeys(notes))


def _differs(group: Group, logits_NC: Tensor, targets_N: Tensor) -> Note | None:
    """A warning if the predictions differ from those in the summary."""
    then, now = group.chosen.summary or {}, metrics_of(logits_NC, targets_N)
    before = then[group.chosen.split]
    if now.samples == before["samples"] and abs(now.top1 - before["top1"]) <= 0.05:
        return None
    return Note(
        f"{group.name}: its weights now reach {now.top1:.2f}% on {now.samples:,} images, its summary has"
        f" {before['top1']:.2f}% on {before['samples']:,}. Data, weights or versions have changed since then.",
        missing=True,
    )


def calibration(content: ReportContent) -> Section:
    """Reliability diagram and risk-coverage curve."""
    found, notes = predicted(content)
    title = "Calibration and confidence"
    if not found:
        return Section("calibration", title, notes or [Note("Not shown: no run is finished.", missing=True)])
    legend = list(found)
    curves = [(series, reliability(*outputs, least=LEAST_IN_BIN)) for series, outputs in found.items()]
    risks = {series: risk_coverage(*outputs) for series, outputs in found.items()}
    names = ", ".join(series.name for series in legend)
    figures = [
        Figure(
            reliability_diagram("reliability", f"Reliability diagram of {names}", curves),
            "Reliability",
            "On the diagonal, accuracy equals confidence. Below it the model is over-confident."
            f" Larger markers stand for more images. Bins of fewer than {LEAST_IN_BIN} images are not shown.",
            legend,
        ),
        Figure(
            risk_coverage_curve(
                "risk", f"Risk-coverage curve of {names}", [(series, risk.tolist()) for series, risk in risks.items()]
            ),
            "Risk and coverage",
            "The error rate if the model answers only its most confident predictions. Lower is better.",
            legend,
        ),
    ]
    rows = [_calibration_row(series, found[series], risks[series]) for series in legend]
    titles = (
        "model",
        "NLL",
        "ECE",
        "mean confidence %",
        "top-1 %",
        "area under risk-coverage %",
        "wrong at 80% answered %",
    )
    return Section("calibration", title, [Figures(figures), Table(_whose(content), titles, rows), *notes])


def _calibration_row(series: Series, outputs: tuple[Tensor, Tensor], risk: Tensor) -> list[str]:
    metrics = metrics_of(*outputs)
    confidence = 100 * float(outputs[0].double().softmax(1).amax(1).mean())
    at_80 = float(risk[max(1, round(0.8 * len(risk))) - 1])
    numbers = [f"{metrics.nll:.4f}", f"{metrics.ece:.4f}", f"{confidence:.2f}", f"{metrics.top1:.2f}"]
    return [series.name, *numbers, f"{100 * float(risk.mean()):.2f}", f"{100 * at_80:.2f}"]


def _whose(content: ReportContent) -> str:
    several = any(len(group.finished) > 1 for group in content.shown)
    return f"Metrics of the {content.finished[0].chosen.split} split" + (
        ", for the seed of each row that is best on validation." if several else "."
    )


def teacher(content: ReportContent) -> Section:
    """Agreement with the teacher, accuracy per class, and the student's additional confusions."""
    title = "Compared with the teacher"
    found, _ = predicted(content)
    chosen = content.verdict.chosen
    if chosen is None or content.series[chosen.name] not in found:
        reason = "no run is finished" if chosen is None else "there are no predictions (see above)"
        return Section("teacher", title, [Note(f"Not shown: {reason}.", missing=True)])
    items: list[Item] = [*_agreements(content, found)]
    teacher_NC = content.attempt(lambda: _teacher_logits(content, chosen))
    if isinstance(teacher_NC, Note):
        return Section("teacher", title, list(dict.fromkeys([*items, teacher_NC])))
    names = content.outputs.dataset(chosen.chosen.config).shown_names
    items += _label_maps(content, chosen, names)
    items += _classes(content, found, names)
    items.append(_confusions(found[content.series[chosen.name]], teacher_NC, names, chosen.name))
    return Section("teacher", title, items)


def _teacher_logits(content: ReportContent, group: Group) -> Tensor:
    teacher = content.teacher_of(group)
    logits_NC, targets_N = content.outputs.teacher_logits(teacher.config, teacher.run)
    own = content.outputs.student_logits(group.chosen)[1]
    if not (len(own) == len(targets_N) and bool((own == targets_N).all())):
        raise DataError(f"{group.name} was measured on other images than the run that its teacher was measured with")
    return logits_NC


def _agreements(content: ReportContent, found: Predicted) -> list[Item]:
    rows, notes = [], []
    for group in content.shown:
        series = content.series[group.name]
        if series not in found:
            continue
        teacher_NC = content.attempt(partial(_teacher_logits, content, group))
        if isinstance(teacher_NC, Note):
            notes.append(teacher_NC)
            continue
        numbers = agreement(found[series][0], teacher_NC, found[series][1])
        cells = [_percent(numbers.same_guess), f"{numbers.kl:.3f}", _percent(numbers.right_where_teacher_right)]
        rows.append([group.name, *cells, _percent(numbers.right_where_teacher_wrong), _percent(numbers.same_error)])
    titles = (
        *("run", "same prediction %", "KL, nats", "accuracy where it is right %", "accuracy where it is wrong %"),
        "its errors repeated %",
    )
    caption = "Agreement with the teacher (it). KL: divergence KL(teacher, student) at temperature 1."
    return [*([Table(caption, titles, rows)] if rows else []), *dict.fromkeys(notes)]


def _percent(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


def _classes(content: ReportContent, found: Predicted, names: Sequence[str]) -> list[Item]:
    """Accuracy per class: a figure of the chosen group, the baseline and the teacher, and a table of all groups."""
    chosen = content.verdict.chosen
    assert chosen is not None
    teacher = content.teacher_of(chosen)
    compared = [series for series in found if series.name in (chosen.name, teacher.name)]
    baseline = content.baseline
    series = None if baseline is None or baseline is chosen else content.series.get(baseline.name)
    if series in found:
        compared.insert(1, series)
    accuracies = {series: class_accuracy(*outputs).tolist() for series, outputs in found.items()}
    own, theirs = (accuracies[series] for series in (compared[0], compared[-1]))
    classes = [c for c in range(len(names)) if not math.isnan(own[c])]
    order = sorted(classes, key=lambda c: (own[c] - theirs[c], c))
    drawn, how = order, "Classes are sorted by the accuracy that the student loses against its teacher."
    if len(order) > 2 * _MOST_AT_AN_END:
        drawn = [*order[:_MOST_AT_AN_END], *order[-_MOST_AT_AN_END:]]
        how = f"The {_MOST_AT_AN_END} classes with the largest loss against the teacher, then those with the smallest."
    values = [(series, [accuracies[series][c] for c in drawn]) for series in compared]
    svg = class_accuracies(
        "classes", f"Accuracy per class of {', '.join(s.name for s in compared)}", [names[c] for c in drawn], values
    )
    rows = [[names[c], *(f"{accuracies[series][c]:.1f}" for series in found)] for c in order]
    table = Table("Accuracy per class, %.", ("class", *(s.name for s in found)), rows, folded="Accuracy of all classes")
    return [Figures([Figure(svg, "Accuracy per class", how, compared)]), table]


def _label_maps(content: ReportContent, group: Group, names: Sequence[str]) -> list[Item]:
    """The teacher's classes for each class of the data, of each teacher with other classes."""
    config = content.teacher_of(group).config
    items: list[Item] = []
    for name, groups in content.outputs.label_maps(config, group.chosen):
        rows = [[ours, ", ".join(theirs)] for ours, theirs in zip(names, groups, strict=True)]
        caption = f"Classes of the teacher {name} for each class of the data. The probabilities of several are added."
        items.append(Table(caption, ("class", "classes of the teacher"), rows, words=("classes of the teacher",)))
    return items


def _confusions(student: tuple[Tensor, Tensor], teacher_NC: Tensor, names: Sequence[str], name: str) -> Item:
    pairs = lost_pairs(student[0], teacher_NC, student[1])
    if not pairs:
        return Note(f"{name} confuses no pair of classes more often than the teacher.")
    rows = [[names[p.label], names[p.guess], str(p.student), str(p.teacher), str(p.of)] for p in pairs]
    titles = ("label", "predicted as", "by the student", "by the teacher", "images")
    caption = f"Confusions that {name} makes more often than its teacher, the largest difference first."
    return Table(caption, titles, rows, words=("predicted as",))
