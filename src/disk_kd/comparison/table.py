"""The table of a comparison for the terminal, and as Markdown, CSV and LaTeX."""

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
    "balanced": ("balanced %", ".2f"),
    "macro_f1": ("macro F1 %", ".2f"),
    "worst_top1": ("worst class %", ".2f"),
    "nll": ("NLL", ".3f"),
    "ece": ("ECE", ".3f"),
    "nll_scaled": ("scaled NLL", ".3f"),
    "ece_scaled": ("scaled ECE", ".3f"),
}
_COSTS: Columns = {"images_per_s": ("images/s", ".0f"), "train_s": ("seconds", ".0f")}


_OF_CLASSES = ("balanced", "macro_f1", "worst_top1")
"""Columns that only unequal classes need."""


def _columns(quantities: Sequence[Quantity], rows: Sequence[Mapping[str, Any]]) -> Columns:
    """All measured columns: metrics, the quantities that methods log, costs.

    If classes are equally frequent in the split, balanced accuracy is top-1. The columns of `_OF_CLASSES` are then left
    out.
    """
    logged = {quantity.name: (quantity.column, quantity.format) for quantity in quantities if quantity.column}
    hidden = () if unequal_classes(rows) else _OF_CLASSES
    return {**{name: column for name, column in _METRICS.items() if name not in hidden}, **logged, **_COSTS}


def unequal_classes(metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a balanced accuracy differs from its top-1, so that the classes of the split are not equally frequent."""
    return any(abs(one["balanced"] - one["top1"]) > 1e-6 for one in metrics if one.get("balanced") is not None)


_SPREAD = ("top1", "top1_last", *_OF_CLASSES, "nll", "ece", "nll_scaled", "ece_scaled")
"""Columns shown with their standard deviation."""


def table(rows: Sequence[dict[str, Any]], quantities: Sequence[Quantity] = ()) -> Table:
    """The comparison for a terminal of 80 columns.

    Args:
        rows: rows of the comparison.
        quantities: the quantities that methods log. A quantity with a limit is shown as value/limit.
    """
    columns = _columns(quantities, rows)
    limits = {quantity.limit for quantity in quantities}
    logged = [quantity for quantity in _with_column(quantities, rows) if quantity.name not in limits]
    folders = {str(Path(row["recipe"]).parent) for row in rows}
    common = f"{folders.pop()}/" if len(folders) == 1 and "." not in folders else ""
    gains = any("top1_gain" in row for row in rows)
    alike = len({(row["n"], _epochs(row)) for row in rows if row["n"]}) == 1 and all(row["n"] for row in rows)
    heading = _title(common, rows[0] if alike else None, gains)
    width = max(map(len, heading.splitlines()))  # so that the heading is not wrapped
    view = Table(title=heading, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=width)
    view.add_column("recipe", no_wrap=True)
    balanced = [columns["balanced"][0]] if "balanced" in columns else []
    titles = (*(() if alike else ("n", "epochs")), "top-1 %", *(("gain",) if gains else ()), *balanced, "NLL", "ECE")
    for title in (*titles, *("/".join(columns[name][0] for name in _cell(quantity, columns)) for quantity in logged)):
        view.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        name = escape(row["recipe"].removeprefix(common))
        if not row["n"]:
            view.add_row(name, "0", "failed")
            continue
        shown = [] if alike else [str(row["n"]), _epochs(row)]
        shown += [_measured(row, "top1", columns), *([_measured(row, "top1_gain", columns)] if gains else [])]
        shown += [_measured(row, "balanced", columns)] if balanced else []
        shown += [_measured(row, "nll", columns, spread=not gains), _measured(row, "ece", columns, spread=False)]
        for quantity in logged:
            shown.append("/".join(filter(None, (_measured(row, name, columns) for name in _cell(quantity, columns)))))
        view.add_row(name, *shown)
    return view


def _with_column(quantities: Sequence[Quantity], rows: Sequence[dict[str, Any]]) -> list[Quantity]:
    """The quantities that have a column and a value in some row."""
    return [quantity for quantity in quantities if quantity.column and any(quantity.name in row for row in rows)]


def _cell(quantity: Quantity, columns: Columns) -> list[str]:
    """The names that share a cell: a quantity, and its limit if that has a column too."""
    return [name for name in (quantity.name, quantity.limit or "") if name in columns]


def _title(common: str, alike: dict[str, Any] | None, gains: bool) -> str:
    """The title of the table for the terminal. `alike` is any row if all have the same numbers of seeds and epochs."""
    seeds = "n seeds"
    if alike is not None:
        seeds = f"{alike['n']} seed{'s' * (alike['n'] > 1)}, {_epochs(alike)} epochs each"
    title = f"{escape(common) or 'recipes'}: mean ± standard deviation over {seeds}"
    return f"{title}\ngain: over the baseline, paired by seed, ± half its 95% interval" if gains else title


def markdown(rows: Sequence[dict[str, Any]], differing: str = "", quantities: Sequence[Quantity] = ()) -> str:
    """The comparison as a Markdown table, with all conditions.

    Args:
        rows: rows of the comparison.
        differing: text of `conditions_text`.
        quantities: the quantities that methods log.
    """
    columns = _columns(quantities, rows)
    cells = [_cells(row, columns) for row in rows]
    titles = [title for title in cells[0] if any(row[title] for row in cells)]
    lines = markdown_table(titles, ([as_markdown(row[title]) for title in titles] for row in cells))
    failures = [
        f"\n{as_markdown(row['recipe'])}: failed: {as_markdown(row['failed'])}" for row in rows if row["failed"]
    ]
    differences = map(as_markdown, differing.splitlines())
    shown = _with_column(quantities, rows)
    legend = [_CLASS_LEGEND] if "balanced" in columns else []
    legend += [f"{q.column}: {q.title.lower()}{f', {q.unit}' if q.unit else ''}, in the last epoch." for q in shown]
    return "\n".join([*lines, *failures, "", *differences, _LEGEND + "".join(f"{line}\n" for line in legend)])


def _cells(row: dict[str, Any], columns: Columns) -> dict[str, str]:
    """The cells of a row in the Markdown table, by title. Missing values are empty."""
    setting = Path(row["setting"]).name if row.get("tried", 1) > 1 else ""
    if not row["n"]:
        shown = {"n": "0", "top-1 %": "failed"}
    else:
        published = "" if row["published"] is None else f"{row['published']:.2f}"
        measured = {title: _measured(row, name, columns) for name, (title, _) in columns.items()}
        decay, parameters = f"{row['weight_decay']:g}", f"{row['parameters']:,}"
        shown = {"what": row["description"], "n": str(row["n"]), "epochs": _epochs(row), "weight decay": decay}
        shown |= {**measured, "parameters": parameters, "published": published}
    about = {"recipe": row["recipe"], "best of": str(row["tried"]) if setting else "", "setting": setting}
    titles = (*_FIRST_TITLES, *(title for title, _ in columns.values()), "parameters", "published")
    return {title: (about | shown).get(title, "") for title in titles}


_FIRST_TITLES = ("recipe", "what", "best of", "setting", "n", "epochs", "weight decay")

_LEGEND = """
Values are mean ± sample standard deviation over n seeds on the test split, which is read at the end. top-1: accuracy of
the checkpoint that the validation split chose, if there is one. last: accuracy of the last checkpoint. gain: over the
baseline, paired by seed, with the 95% interval of Student's t. best of: number of settings, of which validation chose
one. epochs: student epochs over the training data; a number before a plus sign counts the epochs of the starting point.
NLL is in nats. ECE is a fraction (15 bins). scaled: after temperature scaling of the logits, fitted on validation.
seconds: training time, without evaluation and without making a teacher store. parameters: those used at inference,
including SimKD's projector and classifier.
"""


_CLASS_LEGEND = (
    "balanced: mean accuracy of the classes. macro F1: mean F1 of the classes. worst class: accuracy of the class with"
    " the lowest one."
)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as CSV: one line for each setting, with all columns."""
    return csv_lines(rows, list(dict.fromkeys(name for row in rows for name in row)))


def latex(rows: Sequence[dict[str, Any]], quantities: Sequence[Quantity] = ()) -> str:
    """The comparison as a LaTeX table, which needs the package booktabs."""
    columns = _columns(quantities, rows)
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
    """Text with LaTeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    text = re.sub(r"[\\~^±&%$#_{}]", lambda found: special.get(found[0], rf"\{found[0]}"), text)
    return re.sub(r"^-(?=\d)", "$-$", text)


def _epochs(row: dict[str, Any]) -> str:
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
