"""What a comparison says: a table for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from disk_kd.tables import as_markdown, csv_lines, markdown_table

_COLUMNS: dict[str, tuple[str, int]] = {
    "top1": ("top-1 %", 2),
    "top1_gain": ("gain", 2),
    "top1_last": ("last", 2),
    "nll": ("NLL", 3),
    "ece": ("ECE", 3),
    "nll_scaled": ("scaled NLL", 3),
    "ece_scaled": ("scaled ECE", 3),
    "budget": ("budget", 3),
    "budget_used": ("used", 3),
    "images_per_s": ("images/s", 0),
    "train_s": ("seconds", 0),
}
"""Title and digits of the measured columns."""

_SPREAD = ("top1", "top1_last", "nll", "ece", "nll_scaled", "ece_scaled")
"""Columns shown with their standard deviation."""


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The comparison for a terminal of 80 columns."""
    folders = {str(Path(row["recipe"]).parent) for row in rows}
    common = f"{folders.pop()}/" if len(folders) == 1 and "." not in folders else ""
    gains = any("top1_gain" in row for row in rows)
    alike = len({(row["n"], _passes(row)) for row in rows if row["n"]}) == 1 and all(row["n"] for row in rows)
    view = Table(title=_title(common, rows[0] if alike else None, gains), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("recipe", no_wrap=True)
    titles = (*(() if alike else ("n", "epochs")), "top-1 %", *(("gain",) if gains else ()), "NLL", "ECE")
    for title in (*titles, "used/budget"):
        view.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        name = escape(row["recipe"].removeprefix(common))
        if not row["n"]:
            view.add_row(name, "0", "failed")
            continue
        used = "/".join(_measured(row, column) for column in ("budget_used", "budget"))
        shown = [] if alike else [str(row["n"]), _passes(row)]
        shown += [_measured(row, "top1"), *([_measured(row, "top1_gain")] if gains else [])]
        shown += [_measured(row, "nll", spread=not gains), _measured(row, "ece", spread=False)]
        view.add_row(name, *shown, "" if used == "/" else used)
    return view


def _title(common: str, alike: dict[str, Any] | None, gains: bool) -> str:
    """What the numbers of the terminal's table are; `alike` is any row, where all have as many seeds and epochs."""
    seeds = "n seeds"
    if alike is not None:
        seeds = f"{alike['n']} seed{'s' * (alike['n'] > 1)}, {_passes(alike)} epochs each"
    title = f"{escape(common) or 'recipes'}: mean ± standard deviation over {seeds}"
    return f"{title}\ngain: over the baseline, paired by seed, ± half its 95% interval" if gains else title


def markdown(rows: Sequence[dict[str, Any]], differing: str = "") -> str:
    """The comparison as a Markdown table, with all conditions; `differing` is what `compare.conditions` says."""
    cells = [_cells(row) for row in rows]
    titles = [title for title in cells[0] if any(row[title] for row in cells)]
    lines = markdown_table(titles, ([as_markdown(row[title]) for title in titles] for row in cells))
    failures = [
        f"\n{as_markdown(row['recipe'])}: failed: {as_markdown(row['failed'])}" for row in rows if row["failed"]
    ]
    told = map(as_markdown, differing.splitlines())
    return "\n".join([*lines, *failures, "", *told, _LEGEND])


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """What the Markdown table shows of a row, by title; empty where there is nothing to show."""
    setting = Path(row["setting"]).name if row.get("tried", 1) > 1 else ""
    if not row["n"]:
        shown = {"n": "0", "top-1 %": "failed"}
    else:
        published = "" if row["published"] is None else f"{row['published']:.2f}"
        measured = {title: _measured(row, name) for name, (title, _) in _COLUMNS.items()}
        decay, parameters = f"{row['weight_decay']:g}", f"{row['parameters']:,}"
        shown = {"what": row["description"], "n": str(row["n"]), "epochs": _passes(row), "weight decay": decay}
        shown |= {**measured, "parameters": parameters, "published": published}
    about = {"recipe": row["recipe"], "best of": str(row["tried"]) if setting else "", "setting": setting}
    return {title: (about | shown).get(title, "") for title in _TITLES}


_TITLES = (
    *("recipe", "what", "best of", "setting", "n", "epochs", "weight decay"),
    *(title for title, _ in _COLUMNS.values()),
    *("parameters", "published"),
)

_LEGEND = """
Mean ± sample standard deviation over n seeds, on the test split, read at the end only. top-1: of the checkpoint
that the validation split chose (where there is one); last: of the last one. gain: over the baseline, paired by seed,
with the 95% interval of Student's t. best of: settings tried, of which validation chose. epochs: student epochs over
the training data, those of the start, if any, before the plus. NLL in nats; ECE as a fraction, 15 bins; scaled: after
division of the logits by the temperature with the least NLL on validation. budget and used: help asked and given in
the last epoch, in nats, in the unit of the method's variant. seconds: of training, without evaluation
and without making a teacher store. parameters: of what runs at inference, SimKD's projector and classifier included.
"""


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as CSV: a line a setting, all columns."""
    return csv_lines(rows, list(dict.fromkeys(name for row in rows for name in row)))


def latex(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a LaTeX table, which needs the package booktabs."""
    names = [name for name in _COLUMNS if any(name in row for row in rows)]
    titles = ["recipe", "seeds", *(_COLUMNS[name][0] for name in names)]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", "\\toprule", _latex_line(titles), "\\midrule"]
    for row in rows:
        measured = [_measured(row, name) for name in names] if row["n"] else ["failed", *[""] * (len(names) - 1)]
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


def _measured(row: dict[str, Any], name: str, spread: bool = True) -> str:
    if name not in row:
        return ""
    if name == "top1_gain":
        half = row["top1_gain_95"]
        return f"{row[name]:+.2f}" + ("" if half is None else f" ± {half:.2f}")
    digits, deviation = _COLUMNS[name][1], row[f"{name}_std"]
    mean = f"{row[name]:.{digits}f}"
    return f"{mean} ± {deviation:.{digits}f}" if spread and name in _SPREAD and deviation is not None else mean
