"""The commands of one run: train, distill, store-teacher and evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from disk_kd.arguments import EVALUATION_SWITCHES, parse_evaluation, parse_run, read_arguments
from disk_kd.commands.parsing import TableConsole, console_of, print_paths
from disk_kd.measure import TeacherEvaluation, evaluate_teachers, evaluate_weights
from disk_kd.run import execute, store_teacher
from disk_kd.teacher import TeacherStore
from disk_kd.training import (
    JsonConsole,
    json_line,
)


def train(arguments: Sequence[str]) -> None:
    """Train a model with cross-entropy, such as a teacher or a baseline."""
    _train_or_distill("train", arguments)


def distill(arguments: Sequence[str]) -> None:
    """Train a student with any method; most methods learn from a teacher."""
    _train_or_distill("distill", arguments)


def _train_or_distill(command: str, arguments: Sequence[str]) -> None:
    given = read_arguments(arguments)
    config = parse_run(command, arguments)
    if "print_config" in given.switches:
        print(config.to_yaml(), end="")
        return
    quiet = "quiet" in given.switches
    console = console_of(quiet, "log_json" in given.switches)
    summary = execute(config, console)
    if isinstance(console, JsonConsole):
        console.event("end", run=str(config.output), summary=summary)
    elif quiet:
        print_paths(config.output)
    else:
        console.print(summary_table(summary))
        console.print(f"Run directory: {config.output}", highlight=False, markup=False, soft_wrap=True)


def store_outputs(arguments: Sequence[str]) -> None:
    """Run a teacher once over all views of the training data and store its outputs."""
    given = read_arguments(arguments)
    config = parse_run("store-teacher", arguments)
    quiet = "quiet" in given.switches
    console = console_of(quiet, "log_json" in given.switches)
    store = store_teacher(config, console)
    if isinstance(console, JsonConsole):
        paths = [str(member.path) for member in store.members]
        console.event("end", store=paths[0] if len(paths) == 1 else paths)
    elif quiet:
        print_paths(*(member.path for member in store.members))
    else:
        for member in store.members:
            console.print(store_table(member))


def evaluate(arguments: Sequence[str]) -> None:
    """Measure a run's student, a file of weights, or teachers, on a dataset."""
    config = parse_evaluation(arguments)
    of_teachers = isinstance(config, TeacherEvaluation)
    metrics = evaluate_teachers(config) if isinstance(config, TeacherEvaluation) else evaluate_weights(config)
    if "json" in read_arguments(arguments, EVALUATION_SWITCHES).switches:
        print(json_line(metrics), end="")
        return
    table = Table(title=escape(config.title))
    for name in ["teacher"] * of_teachers + ["top-1 %", "top-5 %", "NLL", "ECE", "samples"]:
        table.add_column(name, justify="left" if name == "teacher" else "right")
    for name, one in metrics.items() if of_teachers else [("", metrics)]:
        values = (f"{one['top1']:.2f}", f"{one['top5']:.2f}", f"{one['nll']:.4f}", f"{one['ece']:.4f}")
        table.add_row(*[escape(name)] * of_teachers, *values, str(one["samples"]))
    TableConsole().print(table)


def store_table(store: TeacherStore) -> Table:
    """What a teacher store holds, what it cost, and how much its rounding changes the teacher's outputs."""
    samples, seconds = store.manifest["facts"]["samples"], store.build_s()
    per_sample = store.bytes_per_sample()
    table = Table(title=escape(f"Stored teacher outputs: {store.path}"), show_header=False)
    table.add_row("outputs", ", ".join(store.needs))
    table.add_row("views", f"{store.views} of {samples:,} samples")
    table.add_row(
        "size", f"{per_sample:,} bytes per sample and view, {per_sample * samples * store.views / 2**20:,.1f} MiB"
    )
    table.add_row("time", f"{seconds / store.views:.1f} s per view")
    for temperature, error in store.errors().items():
        measured = f"{error['mean']:.1e} nats on average, {error['max']:.1e} at most"
        table.add_row(f"KL to the teacher at T {temperature}", measured)
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The result of a run as a table."""
    table = Table(title=f"{summary['student']} by {summary['method']}, {summary['student_epochs']} student epochs")
    for name in ("split", "checkpoint", "top-1 %", "top-5 %", "NLL", "ECE"):
        table.add_column(name, justify="left" if name in ("split", "checkpoint") else "right")
    for split in ("validation", "test"):
        for checkpoint, metrics in (("chosen", summary), ("last", summary["last"])):
            if split in metrics:
                m = metrics[split]
                numbers = (f"{m['top1']:.2f}", f"{m['top5']:.2f}", f"{m['nll']:.4f}", f"{m['ece']:.4f}")
                table.add_row(split, checkpoint, *numbers)
    if not table.row_count:
        table.caption = (
            "Accuracy was not measured: there are no validation or test images, or the method does not train the"
            " student's classifier. Then disk-kd probe RUN fits one."
        )
    return table
