"""The section that shows methods side by side: every seed, means and gains with their intervals."""

from __future__ import annotations

from collections.abc import Iterable

from disk_kd.comparison.gain import differences, interval
from disk_kd.report.content import ReportContent
from disk_kd.report.drawing import Series
from disk_kd.report.figures import Seeds, seeds_and_intervals
from disk_kd.report.items import Figure, Figures, Item, Note, Section
from disk_kd.report.reading import Group
from disk_kd.report.verdict import tops

_MOST_ROWS = 24


def side_by_side(content: ReportContent) -> Section:
    """Every seed of every finished group, with intervals, and the gains over the baseline."""
    title = "Side by side"
    drawn = content.finished[:_MOST_ROWS]
    values = [_seeds(content, group) for group in drawn]
    unit = f"top-1 on {drawn[0].chosen.split}, %"
    means = "; ".join(f"{row.series.name} {row.mean:.2f}" for row in values)
    how = (
        "Pale dots: seeds, which differ in initial weights and in the order of the images."
        " Marker and bar: mean and 95% confidence interval."
    )
    figures = [Figure(seeds_and_intervals("tops", f"Top-1 of each seed: {means}", unit, values), "Accuracy", how)]
    base = content.baseline
    gains = [_gains(content, group, base) for group in drawn if base is not None and group is not base]
    if base is not None and gains:
        label = f"Gain over {base.name}: " + "; ".join(f"{row.series.name} {row.mean:+.2f}" for row in gains)
        svg = seeds_and_intervals("gains", label, f"points above {base.name} (0)", gains, zero=base.name)
        how = f"Gain over {base.name} ({_by(content)}). A bar that crosses the dotted line is a tie."
        figures.append(Figure(svg, f"Gain over {base.name}", how))
    items: list[Item] = [Note(_task(content)), Figures(figures)]
    if len(content.finished) > len(drawn):
        shown = f"{len(drawn)} of {len(content.finished)} rows; {content.first} comes first"
        items.append(Note(f"The figures show {shown}. The table below has all rows."))
    return Section("side", title, items)


def _seeds(content: ReportContent, group: Group) -> Seeds:
    values = list(tops(group).values())
    return Seeds(_series(content, group), values, *interval(values))


def _gains(content: ReportContent, group: Group, base: Group) -> Seeds:
    gap, pairs = content.gains[group.name], differences(tops(group), tops(base))
    return Seeds(_series(content, group), pairs, gap.points, gap.half)


def _series(content: ReportContent, group: Group) -> Series:
    return content.series.get(group.name, Series(group.name, None))


def _by(content: ReportContent) -> str:
    """The seeds that the intervals of the gains cover, in words."""
    ways = {gap.by for gap in content.gains.values()}
    return ways.pop() if len(ways) == 1 else "each over the seeds that both have"


def _task(content: ReportContent) -> str:
    """The data of the runs, in one sentence."""
    data = [group.chosen.config.data for group in content.finished]
    summaries = [group.chosen.summary or {} for group in content.finished]
    samples = {summary["train_samples"] for summary in summaries}
    text = f"{'Students' if len(content.finished) > 1 else 'A student'} of {_one_of(d.name for d in data)}"
    text += f" trained on {_one_of(f'{n:,}' for n in samples)} images"
    noise = {d.label_noise for d in data}
    if noise != {0.0}:
        text += f" of which {_one_of(f'{share:.0%}' for share in sorted(noise))} have a wrong label"
    split = content.finished[0].chosen.split
    return f"{text} and measured on the {summaries[0][split]['samples']:,} images of the {split} split."


def _one_of(values: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(values))
