"""What a method logs beside its loss, and how a person reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """A number that a method returns beside its loss, and how people read it.

    `StudentTask.quantities` declares them. The progress line, the summary, the tables of comparisons and the report
    follow the declarations and know no method by name. Losses, whose names end in _loss, need no declaration.

    Args:
        name: the key in the result of the task's `forward`, in metrics.jsonl and in the "end" of summary.json.
        title: the heading of its figure in the report.
        unit: of its values; empty: it has none.
        description: one sentence on how to read it.
        format: Python's format specification of one value.
        reduction: what the summary keeps of the last student epoch: "mean", the mean over its steps, or "last", the
            value at its end.
        limit: the name of the quantity that this one should not exceed. Both then share a figure, and a cell of the
            terminal's table.
        progress: whether the progress line shows it.
        column: the heading of its column in the tables of comparisons; empty: it has no column.
        log_axis: whether its figure may have a logarithmic axis, where values are far apart.

    Example:
        >>> Quantity("margin", "Mean margin", "logits", progress=True).text(0.12345)
        '0.123'
    """

    name: str
    title: str
    unit: str = ""
    description: str = ""
    format: str = ".3g"
    reduction: Literal["mean", "last"] = "mean"
    limit: str | None = None
    progress: bool = False
    column: str = ""
    log_axis: bool = False

    def text(self, value: float) -> str:
        """One value as text."""
        return format(value, self.format)
