"""Renders the sections as one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from disk_kd.errors import ConfigError, RunError
from disk_kd.files import write_text
from disk_kd.report.content import ReportContent
from disk_kd.report.gallery import most_helped
from disk_kd.report.outcome import cost, provenance, runs
from disk_kd.report.outputs import Outputs
from disk_kd.report.predictions import calibration, teacher
from disk_kd.report.quantities import quantities
from disk_kd.report.reading import Run, find_runs, group_runs, name_groups
from disk_kd.report.shipped import shipped
from disk_kd.report.side import side_by_side
from disk_kd.report.training import training

REPORT = "report.html"
_SECTIONS = (runs, cost, shipped, training, quantities, calibration, teacher, most_helped, provenance)


def report(paths: Iterable[Path], *, output: Path | None = None, device: str = "auto") -> Path:
    """Write the report of runs.

    The same runs, data and versions give the same bytes.

    Args:
        paths: run directories, or folders of run directories.
        output: the file; None: `report.html` in the run directory or folder, if there is only one path.
        device: device on which students and teachers are evaluated.

    Returns:
        The file.

    Raises:
        RunError: a path holds no run, or the file cannot be written there.
        ConfigError: there are several paths and no output.
    """
    paths = list(paths)
    if output is None:
        if len(paths) != 1:
            raise ConfigError(f"a report of {len(paths)} paths needs a file; give --output FILE")
        output = paths[0] / REPORT
    groups = group_runs(find_runs(paths))
    if not output.parent.is_dir() or output.is_dir():
        raise RunError(f"the report cannot be written to {output}; give --output a file in a folder that exists")
    write_text(output, page(ReportContent(groups, Outputs(device))))
    return output


def report_comparison(
    rows: Mapping[str, Sequence[Path]], baseline: str | None, output: Path, differing: str | None = None
) -> None:
    """Write the report of a comparison.

    Args:
        rows: run directories of each row, one for each seed.
        baseline: row that the others are compared with; None: the row that learned from labels alone, if there is one.
        output: the file.
        differing: the comparison's text on the options in which its rows differ; None: made from the rows.
    """
    groups = name_groups({name: [Run.read(folder) for folder in folders] for name, folders in rows.items()})
    base = None if baseline is None or baseline not in rows else groups[list(rows).index(baseline)].name
    write_text(output, page(ReportContent(groups, Outputs(), base, differing)))


def page(content: ReportContent) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    several = (side_by_side,) if len(content.finished) > 1 and content.comparable else ()
    made = [section(content) for section in (*several, *_SECTIONS)]
    sections = [section for section in made if section is not None]
    template = environment.get_template("page.html.jinja")
    style = environment.get_template("page.css").render()
    return template.render(verdict=content.verdict, sections=sections, style=style, version=version("disk-kd"))
