"""The tables of a benchmark: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from disk_kd.bench.measure import Rate
from disk_kd.bench.peak import Peak
from disk_kd.bench.settings import BenchSettings
from disk_kd.bench.sweeps import Point
from disk_kd.bench.targets import GIB, Target
from disk_kd.tables import csv_lines, markdown_table

COLUMNS = ("case", "images/s", "range", "/ bound", "/ our CE", "host GiB", "device GiB")
LEGEND = (
    "Median and range of {repetitions} interleaved epochs of every case; / bound and / our CE are ratios of medians."
    " The bound and the peers run in processes with PyTorch's defaults: eager, contiguous, float32. Our process keeps"
    " freed memory. The images are noise. All epochs, also the peers', use crop, flip, AutoAugment, cutout and SGD with"
    " momentum. Images are counted for the student; the case with a helper network is an epoch of the student and one"
    " of the helper. Peak memory is measured in a separate process with {memory_samples:,} training images in memory,"
    " including the build of the teacher store."
)


@dataclass(frozen=True)
class Results:
    """The results of a benchmark.

    Attributes:
        settings: settings of the benchmark.
        environment: hardware and versions.
        rates: speeds of the epochs.
        peaks: peak memory of some of the cases.
        store_bytes: bytes of one view of stored logits, by teacher.
        targets: the targets that apply.
        points: measurements of the sweeps.
        profile: time by operator, as Markdown; empty if profiling is off.
    """

    settings: BenchSettings
    environment: Mapping[str, Any]
    rates: Sequence[Rate]
    peaks: Sequence[Peak]
    store_bytes: Mapping[str, int]
    targets: Sequence[Target]
    points: Sequence[Point]
    profile: str = ""


def rows(results: Results) -> list[dict[str, Any]]:
    """A row for each case, with its ratios and memory."""
    speed = {(rate.key, rate.teacher): rate.median for rate in results.rates}
    peaks = {(peak.key, peak.teacher): peak for peak in results.peaks}
    table = []
    for rate in results.rates:
        peak = peaks.get((rate.key, rate.teacher))
        table.append(
            {
                "case": rate.key,
                "title": rate.title,
                "teacher": rate.teacher,
                "images_per_s": rate.median,
                "lowest": rate.low,
                "highest": rate.high,
                "to_bound": rate.median / speed["bound", None],
                "to_ce": rate.median / speed["ce", None],
                "peak_host_bytes": peak and peak.host_bytes,
                "peak_device_bytes": peak and peak.device_bytes,
                "stored_bytes_per_view": results.store_bytes.get(rate.teacher or "") if rate.key == "store" else None,
            }
        )
    return table


def sweep_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for each measurement of the sweeps."""
    return [
        {
            "sweep": point.sweep,
            "x": point.rate.x,
            "case": point.rate.key,
            "title": point.rate.title,
            "teacher": point.rate.teacher,
            "images_per_s": point.rate.median,
            "lowest": point.rate.low,
            "highest": point.rate.high,
            "us_per_image": point.us_per_image,
            "stored_bytes_per_view": point.bytes_per_view,
        }
        for point in points
    ]


def csv_text(table: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; None is blank."""
    return csv_lines(table, list(table[0]))


def title(results: Results) -> str:
    """One line on what was measured and on which machine."""
    s, where = results.settings, results.environment
    models = f"{s.student} from {', '.join(s.teachers)}"
    sizes = f"{s.classes:,} classes, 3x{s.image_size}x{s.image_size}, batch {s.batch_size}, {s.precision}"
    steps = f"compiled ({s.compile_mode})" if s.compile else "eager"
    return f"{models}; {sizes}, our steps {steps}; {where['hardware']}, {where['threads']} threads"


def tables(results: Results) -> list[Table]:
    """Cases and targets for a terminal."""
    cases = Table(*COLUMNS, title=title(results), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    cases.columns[0].min_width = 24
    targets = Table("target", "measured", "wanted", "", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for table in (cases, targets):
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
    for row in rows(results):
        cases.add_row(*_cells(row))
    if not any(row["peak_device_bytes"] for row in rows(results)):
        cases.columns.pop()
    for target in results.targets:
        targets.add_row(*_target_cells(target))
    return [cases, targets]


def markdown(results: Results) -> str:
    """Cases, stored bytes, targets and the legend."""
    versions = ", ".join(f"{name} {number}" for name, number in results.environment["versions"].items())
    parts = [f"# {title(results)}", "", f"{versions}; {results.environment['git_revision']}", ""]
    parts += markdown_table(COLUMNS, [_cells(row) for row in rows(results)])
    parts += ["", LEGEND.format(**vars(results.settings)), ""]
    for teacher, size in results.store_bytes.items():
        parts.append(f"Stored logits of {teacher}: {size / results.settings.samples:,.0f} bytes an image and view.")
    parts += ["", *markdown_table(("target", "measured", "wanted", ""), [_target_cells(t) for t in results.targets])]
    return "\n".join(parts) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = row["title"] if row["teacher"] is None else f"{row['title']} ({row['teacher']})"
    memory = [row["peak_host_bytes"], row["peak_device_bytes"]]
    return [
        name,
        f"{row['images_per_s']:,.0f}",
        f"{row['lowest']:,.0f} - {row['highest']:,.0f}",
        f"{row['to_bound']:.2f}",
        f"{row['to_ce']:.2f}",
        *("" if size is None else f"{size / GIB:.2f}" for size in memory),
    ]


def _target_cells(target: Target) -> list[str]:
    sign = ">=" if target.at_least else "<="
    wanted = f"{sign} {target.limit:g}{target.unit}"
    return [target.what, f"{target.value:.3g}{target.unit}", wanted, "met" if target.met else "NOT MET"]
