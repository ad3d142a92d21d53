"""The sections on the outcome: the runs, what differs between them, accuracy against cost, and versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from disk_kd.comparison.conditions import conditions_text
from disk_kd.comparison.table import unequal_classes
from disk_kd.report.content import ReportContent, ReportTeacher, TeacherFacts
from disk_kd.report.drawing import Series
from disk_kd.report.figures import accuracy_over_cost
from disk_kd.report.items import Figure, Figures, Item, Note, Points, Section, Table, Text
from disk_kd.report.reading import Group, Run
from disk_kd.report.training import shown_text
from disk_kd.report.verdict import spread

_OF_CLASSES = (("balanced %", "balanced"), ("macro F1 %", "macro_f1"), ("worst class %", "worst_top1"))
"""Titles and names of metrics that only unequal classes need."""
_COLUMNS = ("run", "top-1 %", "gain", "what", "to the chosen", "top-5 %", "NLL", "ECE", "seeds")
_CLASSES = ("run", *(title for title, _ in _OF_CLASSES), "worst class")
_COSTS = ("run", "student", "parameters", "multiply-adds", "epochs", "start", "images/s", "peak memory")
"""Columns of the tables. All columns in one table would be wider than most screens."""
_WORDS = ("worst class", "what", "student", "start")
_Row = dict[str, str]
"""Cells by column; missing cells are empty."""


def runs(content: ReportContent) -> Section:
    """All groups, their teachers, every run, and the options in which they differ."""
    several = any(len(group.runs) > 1 for group in content.candidates)
    rows = [_row(content, group, 3 if several else 4) for group in content.candidates]
    teachers = content.measured_teachers
    rows += [_teacher_row(teacher, facts) for teacher, facts in teachers if not isinstance(facts, Note)]
    same = _same(rows) if len(content.candidates) > 1 else {}
    left_out = {*same, *(() if content.has_top5 else ("top-5 %",))}
    measured = [(run.summary or {})[run.split] for group in content.finished for run in group.finished]
    of_classes = ((_CLASS_CAPTION, _CLASSES),) if unequal_classes(measured) else ()
    marked = 0 if len(content.candidates) > 1 and content.finished and content.comparable else None
    items: list[Item] = []
    for caption, wanted in ((_caption(content), _COLUMNS), *of_classes, (_COST_CAPTION, _COSTS)):
        columns = [title for title in wanted if title not in left_out and any(row.get(title) for row in rows)]
        cells = [[row.get(title, "") for title in columns] for row in rows]
        titles = [f"gain over {content.baseline.name}" if t == "gain" and content.baseline else t for t in columns]
        items += [Table(caption, titles, cells, marked, words=_WORDS)] if len(columns) > 1 else []
    if same:
        items.append(Note(f"Same in all rows: {'; '.join(f'{title}: {value}' for title, value in same.items())}."))
    items += dict.fromkeys([*content.lost, *(facts for _, facts in teachers if isinstance(facts, Note))])
    items += [_every_run(content)] if several and content.finished else []
    if len(content.candidates) > 1:
        first, *lines = _differing(content).splitlines()
        points = [line.removeprefix("- ") for line in lines if line]
        items += [Note(first), *([Points(points)] if points else [])]
    return Section("runs", "The runs" if len(content.candidates) > 1 else "The run", items)


def _differing(content: ReportContent) -> str:
    """The options in which the runs differ. In the report of a comparison it is the comparison's own text."""
    if content.differing is not None:
        return content.differing
    return conditions_text({group.name: [run.conditions for run in group.runs] for group in content.candidates})


def _same(rows: Sequence[_Row]) -> dict[str, str]:
    """Columns that are left out of the table, because all their values are the same."""
    found = {title: {row[title] for row in rows if title in row} for title in _NEED_NO_PLACE}
    return {title: values.pop() for title, values in found.items() if len(values) == 1}


_NEED_NO_PLACE = ("student", "seeds", "epochs", "start")


_CLASS_CAPTION = (
    "Unequal classes. Balanced: mean accuracy of the classes. Worst class: the one with the lowest accuracy."
)
_COST_CAPTION = (
    "Costs. Multiply-adds: for one image. Epochs: student epochs over the training data; a number before a plus sign"
    " counts the epochs of the starting point."
)


def _caption(content: ReportContent) -> str:
    text = f"Metrics of the {content.candidates[0].chosen.split} split, for the checkpoint that validation chose."
    if len(content.candidates) > 1:
        text += f" Sorted: {content.first} comes first."
    if any(len(group.runs) > 1 for group in content.candidates):
        text += " Metrics: mean ± sample standard deviation over seeds."
        text += " Gains and gaps: mean ± half of the 95% interval over seeds."
    return text


def _row(content: ReportContent, group: Group, digits: int) -> _Row:
    config = group.chosen.config
    row = {"run": group.name, "what": config.description or config.method, "student": config.student.name}
    if not group.finished:
        done = group.chosen.student_lines[-1]["epochs"] if group.chosen.student_lines else 0
        state = "not measured" if group.unmeasured else "not finished"
        return row | {"top-1 %": state, "epochs": f"{done:.0f} of {config.train.epochs}"}
    summary = group.chosen.summary or {}
    for title, name, places in (
        ("top-1 %", "top1", 2),
        ("top-5 %", "top5", 2),
        ("NLL", "nll", digits),
        ("ECE", "ece", digits),
    ):
        row[title] = spread(group.values("split", name), places)
    for title, name in _OF_CLASSES:
        if values := group.values("split", name):
            row[title] = spread(values, 2)
    row["worst class"] = summary.get("worst_classes", {}).get(group.chosen.split, "")
    if len(content.candidates) > 1 and content.comparable:
        gap = content.verdict.gaps.get(group.name)
        row["to the chosen"] = "chosen" if gap is None else gap.numbers()
        gain = content.gains.get(group.name)
        row["gain"] = "" if gain is None else gain.numbers()
    return row | {
        "seeds": str(len(group.finished)),
        "epochs": _epochs(summary),
        "start": _start(summary),
        "parameters": f"{summary['parameters']:,}",
        "multiply-adds": f"{summary['multiply_adds']:,}",
        "images/s": f"{sum(group.values('images_per_s')) / len(group.finished):,.0f}",
        "peak memory": _memory(summary),
    }


def _teacher_row(teacher: ReportTeacher, facts: TeacherFacts) -> _Row:
    metrics = facts.metrics
    return {
        "run": teacher.name,
        "what": "measured for this report",
        "top-1 %": f"{metrics.top1:.2f}",
        "top-5 %": f"{metrics.top5:.2f}",
        **{title: f"{getattr(metrics, name):.2f}" for title, name in _OF_CLASSES},
        "NLL": f"{metrics.nll:.4f}",
        "ECE": f"{metrics.ece:.4f}",
        "parameters": _count(facts.parameters),
        "multiply-adds": _count(facts.multiply_adds),
    }


def _count(number: int) -> str:
    """A number for people; 0 is what is not known of a teacher that runs outside torch."""
    return f"{number:,}" if number else "unknown"


def _epochs(summary: dict[str, Any]) -> str:
    own, before = summary["student_epochs"], summary["start_epochs"]
    return str(own) if before == 0 else f"{'?' if before is None else before}+{own}"


def _start(summary: dict[str, Any]) -> str:
    start = summary["start"]
    return start if start == "scratch" else "/".join(Path(start).parts[-3:-1])


def _memory(summary: dict[str, Any]) -> str:
    device = summary["peak_device_memory_bytes"]
    return f"{(device or summary['peak_memory_bytes']) / 2**30:.2f} GiB {'device' if device else 'host'}"


def _every_run(content: ReportContent) -> Table:
    """The numbers of each seed's summary."""
    found = [_seed_row(group.name, run) for group in content.candidates for run in group.finished]
    titles = [title for title in found[0] if title != "top-5 %" or content.has_top5]
    caption = "Every seed. Last: the last checkpoint. Chosen epoch: the epoch of the checkpoint that validation chose."
    return Table(caption, titles, [[row[title] for title in titles] for row in found], folded="Every run")


def _seed_row(name: str, run: Run) -> _Row:
    summary = run.summary or {}
    metrics, validation = summary[run.split], summary.get("validation", {}).get("top1")
    return {
        "run": name,
        "seed": str(run.seed),
        "validation top-1 %": "" if validation is None else f"{validation:.2f}",
        "top-1 %": f"{metrics['top1']:.2f}",
        "top-5 %": f"{metrics['top5']:.2f}",
        "NLL": f"{metrics['nll']:.4f}",
        "ECE": f"{metrics['ece']:.4f}",
        "last top-1 %": f"{summary['last'][run.split]['top1']:.2f}",
        "chosen epoch": str(summary["selected_epoch"]),
    }


def cost(content: ReportContent) -> Section:
    """Accuracy against multiply-adds."""
    title = "Accuracy against cost"
    if not content.comparable and len(content.finished) > 1:
        return Section("cost", title, [Note("Not shown: the runs were measured on different images.", missing=True)])
    points: list[tuple[Series, float, float]] = []
    for group in content.shown:
        if group.finished:
            top1 = group.values("split", "top1")
            points.append((content.series[group.name], group.values("multiply_adds")[0], sum(top1) / len(top1)))
    if not points:
        return Section("cost", title, [Note("Not shown: no run is finished.", missing=True)])
    if len(points) > 1 and len({cost for _, cost, _ in points}) == 1:
        return Section("cost", title, [Note(_one_cost(content, points[0][1]))])
    for teacher, facts in content.measured_teachers:
        if not isinstance(facts, Note) and facts.multiply_adds:
            points.append((Series(teacher.name, None), facts.multiply_adds, facts.metrics.top1))
    values = "; ".join(f"{series.name} {top1:.2f}% at {round(cost):,}" for series, cost, top1 in points)
    svg = accuracy_over_cost("cost", f"Top-1 over multiply-adds: {values}", points)
    note = "Higher and further left is better: more accurate with fewer multiply-adds per image."
    items: list[Item] = [Figures([Figure(svg, "Top-1 against multiply-adds", note, [point[0] for point in points])])]
    if len(content.candidates) > len(content.shown):
        items.append(Note(shown_text(content)))
    return Section("cost", title, items)


def _one_cost(content: ReportContent, cost: float) -> str:
    """The cost of the students, if all cost the same."""
    text = f"All students cost the same: {round(cost):,} multiply-adds per image"
    known = [(teacher.name, facts) for teacher, facts in content.measured_teachers if not isinstance(facts, Note)]
    of_teachers = [f"the {name} {facts.multiply_adds:,}" for name, facts in known if facts.multiply_adds]
    return f"{'; '.join([text, *of_teachers])}. Accuracy alone decides."


def provenance(content: ReportContent) -> Section:
    """Resolved configurations, hardware and versions."""
    names: dict[tuple[str, ...], list[str]] = {}
    for group in content.finished:
        names.setdefault(_circumstances(group.chosen.summary or {}), []).append(group.name)
    everyone = len(names) == 1 and len(content.finished) > 1
    rows = [["all runs" if everyone else ", ".join(of), *facts] for facts, of in names.items()]
    titles = ("run", "training samples", "hardware", "versions", "revision")
    caption = "Hardware and software versions of the runs."
    items: list[Item] = [Table(caption, titles, rows, words=titles[2:])] if rows else []
    for group in content.candidates:
        items.append(Text(f"config.yaml of {group.name}, seed {group.chosen.seed}", group.chosen.text))
    return Section("config", "Configuration and versions", items)


def _circumstances(summary: dict[str, Any]) -> tuple[str, ...]:
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    hardware = f"{summary['hardware']}, threads: {summary['threads']}"
    return _images_text(summary), hardware, versions, summary["git_revision"] or "unknown"


def _images_text(summary: dict[str, Any]) -> str:
    """The number of training samples, and how many images of either kind were seen if some have no label."""
    without, seen = summary.get("unlabelled_samples"), summary.get("images_seen")
    text = f"{summary['train_samples']:,}"
    if not without or not seen:
        return text
    return f"{text}, {without:,} without a label; seen {seen['labelled']:,} and {seen['unlabelled']:,} times"
