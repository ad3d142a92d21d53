"""What a comparison says: a table for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from disk_kd.tables import as_markdown, csv_lines, markdown_table
from disk_kd.tasks import Quantity

Columns = Mapping[str, tuple[str, str]]
"""Title and format of measured columns, by name."""

_METRICS: Columns = {
    "top1": ("top-1 %", ".2f"),
    "top1_gain": ("gain", ".2f"),
    "top1_last": ("last", ".2f"),
    "nll": ("NLL", ".3f"),
    "ece": ("ECE", ".3f"),
    "nll_scaled": ("scaled NLL", ".3f"),
    "ece_scaled": ("scaled ECE", ".3f"),
}
_COSTS: Columns = {"images_per_s": ("images/s", ".0f"), "train_s": ("seconds", ".0f")}


def _columns(quantities: Sequence[Quantity]) -> Columns:
    """All measured columns: metrics, the quantities that methods log, costs."""
    logged = {quantity.name: (quantity.column, quantity.format) for quantity in quantities if quantity.column}
    return {**_METRICS, **logged, **_COSTS}


_SPREAD = ("top1", "top1_last", "nll", "ece", "nll_scaled", "ece_scaled")
"""Columns shown with their standard deviation."""


def table(rows: Sequence[dict[str, Any]], quantities: Sequence[Quantity] = ()) -> Table:
    """The comparison for a terminal of 80 columns.

    Args:
        rows: of the comparison.
        quantities: what the methods log. One with a limit is shown as value/limit.
    """
    columns = _columns(quantities)
    limits = {quantity.limit for quantity in quantities}
    logged = [quantity for quantity in _with_column(quantities, rows) if quantity.name not in limits]
    folders = {str(Path(row["recipe"]).parent) for row in rows}
    common = f"{folders.pop()}/" if len(folders) == 1 and "." not in folders else ""
    gains = any("top1_gain" in row for row in rows)
    alike = len({(row["n"], _passes(row)) for row in rows if row["n"]}) == 1 and all(row["n"] for row in rows)
    heading = _title(common, rows[0] if alike else None, gains)
    width = max(map(len, heading.splitlines()))  # so that the heading is not wrapped
    view = Table(title=heading, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=width)
    view.add_column("recipe", no_wrap=True)
    titles = (*(() if alike else ("n", "epochs")), "top-1 %", *(("gain",) if gains else ()), "NLL", "ECE")
    for title in (*titles, *("/".join(columns[name][0] for name in _cell(quantity, columns)) for quantity in logged)):
        view.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        name = escape(row["recipe"].removeprefix(common))
        if not row["n"]:
            view.add_row(name, "0", "failed")
            continue
        shown = [] if alike else [str(row["n"]), _passes(row)]
        shown += [_measured(row, "top1", columns), *([_measured(row, "top1_gain", columns)] if gains else [])]
        shown += [_measured(row, "nll", columns, spread=not gains), _measured(row, "ece", columns, spread=False)]
        for quantity in logged:
            shown.append("/".join(filter(None, (_measured(row, name, columns) for name in _cell(quantity, columns)))))
        view.add_row(name, *shown)
    return view


def _with_column(quantities: Sequence[Quantity], rows: Sequence[dict[str, Any]]) -> list[Quantity]:
    """The quantities that have a column and a value in some row."""
    return [quantity for quantity in quantities if quantity.column and any(quantity.name in row for row in rows)]


def _cell(quantity: Quantity, columns: Columns) -> list[str]:
    """The names of what shares a cell: a quantity, and its limit if it has a column too."""
    return [name for name in (quantity.name, quantity.limit or "") if name in columns]


def _title(common: str, alike: dict[str, Any] | None, gains: bool) -> str:
    """What the numbers of the terminal's table are; `alike` is any row, where all have as many seeds and epochs."""
    seeds = "n seeds"
    if alike is not None:
        seeds = f"{alike['n']} seed{'s' * (alike['n'] > 1)}, {_passes(alike)} epochs each"
    title = f"{escape(common) or 'recipes'}: mean ± standard deviation over {seeds}"
    return f"{title}\ngain: over the baseline, paired by seed, ± half its 95% interval" if gains else title


def markdown(rows: Sequence[dict[str, Any]], differing: str = "", quantities: Sequence[Quantity] = ()) -> str:
    """The comparison as a Markdown table, with all conditions.

    Args:
        rows: of the comparison.
        differing: the text of `comparison.conditions`.
        quantities: what the methods log.
    """
    cells = [_cells(row, _columns(quantities)) for row in rows]
    titles = [title for title in cells[0] if any(row[title] for row in cells)]
    lines = markdown_table(titles, ([as_markdown(row[title]) for title in titles] for row in cells))
    failures = [
        f"\n{as_markdown(row['recipe'])}: failed: {as_markdown(row['failed'])}" for row in rows if row["failed"]
    ]
    differences = map(as_markdown, differing.splitlines())
    shown = _with_column(quantities, rows)
    legend = [f"{q.column}: {q.title.lower()}{f', {q.unit}' if q.unit else ''}, in the last epoch." for q in shown]
    return "\n".join([*lines, *failures, "", *differences, _LEGEND + "".join(f"{line}\n" for line in legend)])


def _cells(row: dict[str, Any], columns: Columns) -> dict[str, str]:
    """What the Markdown table shows of a row, by title; empty where there is nothing to show."""
    setting = Path(row["setting"]).name if row.get("tried", 1) > 1 else ""
    if not row["n"]:
        shown = {"n": "0", "top-1 %": "failed"}
    else:
        published = "" if row["published"] is None else f"{row['published']:.2f}"
        measured = {title: _measured(row, name, columns) for name, (title, _) in columns.items()}
        decay, parameters = f"{row['weight_decay']:g}", f"{row['parameters']:,}"
        shown = {"what": row["description"], "n": str(row["n"]), "epochs": _passes(row), "weight decay": decay}
        shown |= {**measured, "parameters": parameters, "published": published}
    about = {"recipe": row["recipe"], "best of": str(row["tried"]) if setting else "", "setting": setting}
    titles = (*_FIRST_TITLES, *(title for title, _ in columns.values()), "parameters", "published")
    return {title: (about | shown).get(title, "") for title in titles}


_FIRST_TITLES = ("recipe", "what", "best of", "setting", "n", "epochs", "weight decay")

_LEGEND = """
Mean ± sample standard deviation over n seeds, on the test split, read at the end only. top-1: of the checkpoint
that the validation split chose (where there is one); last: of the last one. gain: over the baseline, paired by seed,
with the 95% interval of Student's t. best of: settings tried, of which validation chose. epochs: student epochs over
the training data, those of the start, if any, before the plus. NLL in nats; ECE as a fraction, 15 bins; scaled: after
division of the logits by the temperature with the least NLL on validation. seconds: of training, without evaluation
and without making a teacher store. parameters: of what runs at inference, SimKD's projector and classifier included.
"""


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as CSV: a line a setting, all columns."""
    return csv_lines(rows, list(dict.fromkeys(name for row in rows for name in row)))


def latex(rows: Sequence[dict[str, Any]], quantities: Sequence[Quantity] = ()) -> str:
    """The comparison as a LaTeX table, which needs the package booktabs."""
    columns = _columns(quantities)
    names = [name for name in columns if any(name in row for row in rows)]
    titles = ["recipe", "seeds", *(columns[name][0] for name in names)]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", "\\toprule", _latex_line(titles), "\\midrule"]
    for row in rows:
        measured = (
            [_measured(row, name, columns) for name in names] if row["n"] else ["failed", *[""] * (len(names) - 1)]
        )
        lines.append(_latex_line([row["recipe"], str(row["n"]), *measured]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(_as_latex(cell) for cell in cells) + r" \\"


def _as_latex(text: str) -> str:
    """Text whose characters stand for themselves."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    text = re.sub(r"[\\~^±&%$#_{}]", lambda found: special.get(found[0], rf"\{found[0]}"), text)
    return re.sub(r"^-(?=\d)", "$-$", text)


def _passes(row: dict[str, Any]) -> str:
    own, before = str(row["student_epochs"]), row["start_epochs"]
    return own if before == 0 else f"{'?' if before is None else before}+{own}"


def _measured(row: dict[str, Any], name: str, columns: Columns, spread: bool = True) -> str:
    if name not in row:
        return ""
    if name == "top1_gain":
        half = row["top1_gain_95"]
        return f"{row[name]:+.2f}" + ("" if half is None else f" ± {half:.2f}")
    digits, deviation = columns[name][1], row[f"{name}_std"]
    mean = format(row[name], digits)
    return f"{mean} ± {deviation:{digits}}" if spread and name in _SPREAD and deviation is not None else mean
