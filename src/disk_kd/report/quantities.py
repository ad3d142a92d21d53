"""The section on the quantities that methods log beside their losses, as their tasks declare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from disk_kd.report.content import ReportContent
from disk_kd.report.drawing import MOST, Series
from disk_kd.report.figures import over_epochs
from disk_kd.report.items import Figure, Figures, Item, Note, Section
from disk_kd.report.reading import Group
from disk_kd.report.training import group_lines, line_legend, line_names, logged_values
from disk_kd.tasks import Quantity


def quantities(content: ReportContent) -> Section | None:
    """A figure for each quantity, together with its limit if it has one; None if no method logs any."""
    logs = {group: logged for group in content.candidates if (logged := _logged(group))}
    groups = list(logs)[:MOST]
    series = _places(content, groups)
    limits = {quantity.limit for group in groups for quantity in logs[group].values()}
    figures = []
    for name in dict.fromkeys(name for group in groups for name in logs[group] if name not in limits):
        declared = {group: logs[group][name] for group in groups if name in logs[group]}
        figures.append(_figure(name, declared, series))
    if not figures:
        return None
    ends = [text for group in groups for text in _ends(group, logs[group])]
    notes: list[Item] = [Note(f"At the end of training: {'; '.join(ends)}.")] if ends else []
    return Section("quantities", "What the methods log", [*notes, Figures(figures)])


def _logged(group: Group) -> dict[str, Quantity]:
    """The quantities that are declared and in the log, by name."""
    return {each.name: each for each in group.quantities if logged_values(group.chosen, "train", each.name)}


def _figure(name: str, declared: dict[Group, Quantity], series: dict[str, Series]) -> Figure:
    """One quantity over student epochs, for each group that logs it."""
    first, *_ = declared.values()
    lines = [line for group in declared for line in group_lines(series[group.name], group, "train", name)]
    limits = [
        line
        for group, quantity in declared.items()
        if quantity.limit is not None
        for line in group_lines(series[group.name], group, "train", quantity.limit, limit=True)
    ]
    label = f"{first.title} over student epochs, for {line_names(lines)}"
    unit = _unit(declared.values()) or first.title
    svg = over_epochs(f"quantity-{name}", label, unit, [*limits, *lines], may_log=first.log_axis)
    dotted = f"Dotted: {str(first.limit).replace('_', ' ')}." if limits else ""
    return Figure(svg, first.title, f"{first.description} {dotted}".strip(), line_legend(lines))


def _unit(declared: Iterable[Quantity]) -> str:
    """The unit of a quantity, if it is the same for all groups."""
    units = {quantity.unit for quantity in declared}
    return units.pop() if len(units) == 1 else "each in its unit"


def _ends(group: Group, logged: dict[str, Quantity]) -> list[str]:
    """Each limited quantity at the end of the group's chosen run, beside its limit, in words."""
    texts = []
    for name, quantity in logged.items():
        if quantity.limit in logged:
            end = (group.chosen.summary or {}).get("end") or _last_line(group.chosen.student_lines, name)
            value, limit = end.get(name), end.get(quantity.limit)
            if value is None or limit is None:  # not finite
                continue
            numbers = f"{quantity.text(value)} of {quantity.text(limit)}"
            texts.append(f"{group.name}, {quantity.title.lower()}: {numbers}, {_comparison(value, limit)}")
    return texts


def _comparison(value: float, limit: float) -> str:
    """A value compared with its limit, in words."""
    if value <= limit:
        return "within the limit"
    if limit == 0:
        return "above the limit"
    ratio = value / limit
    if ratio >= 2:
        return f"{ratio:.3g} times the limit"
    return "above the limit by less than 1%" if ratio < 1.01 else f"above the limit by {ratio - 1:.0%}"


def _last_line(lines: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The last line of a log in which the quantity is finite. A run that diverged ends with other lines."""
    return next(line for line in reversed(lines) if line.get(name) is not None)


def _places(content: ReportContent, groups: Sequence[Group]) -> dict[str, Series]:
    """Each group's colour and marker: those of all figures, or free ones for a group that other figures leave out."""
    found = {group.name: content.series[group.name] for group in groups if group.name in content.series}
    taken = {series.index for series in found.values()}
    free = (index for index in range(MOST) if index not in taken)
    return {group.name: found.get(group.name) or Series(group.name, next(free)) for group in groups}
