"""The commands that make teachers: probe and zeroshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from disk_kd import ranks
from disk_kd.arguments import read_arguments
from disk_kd.commands.parsing import console_of, print_paths
from disk_kd.help import settings_help
from disk_kd.training import (
    JsonConsole,
)


def probe_backbone(arguments: Sequence[str]) -> None:
    """Fit a linear classifier on a backbone's features, and write both as a teacher."""
    from disk_kd.probe import probe, read_probe  # here, because scikit-learn takes a second to import

    given = read_arguments(arguments)
    request = read_probe(given.words, given.tree)
    quiet = "quiet" in given.switches
    console = console_of(quiet, "log_json" in given.switches)
    done = probe(request, console)
    if isinstance(console, JsonConsole):
        console.event("end", folder=str(done.folder), **done.summary)
    elif quiet:
        print_paths(done.folder)
    elif ranks.is_main():
        console.print(probe_table(done.folder, done.summary))
        again = " (made before)" if done.reused else ""
        console.print(
            f"Teacher{again}: {done.folder}; disk-kd evaluate {done.folder} measures it on the test split",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def probe_help(arguments: Sequence[str]) -> str:
    from disk_kd.probe import ProbeSettings  # as in `probe_backbone`

    about = (
        f"{probe_backbone.__doc__} The backbone is --teacher.name; RECIPE gives a backbone and data; RUN or FILE is a"
        " trained student whose features are classified. The backbone runs once over the labelled images, through the"
        " teacher store. If the command is stopped, start it again to go on."
    )
    return settings_help("probe", about, ProbeSettings)


def probe_table(folder: Path, summary: Mapping[str, Any]) -> Table:
    """The accuracy of a probe for each C that was tried, and what it cost."""
    table = Table(title=escape(f"Linear probe of {summary['backbone']['name']}, {summary['features']} features"))
    for name in ("C", "validation top-1 %", "NLL", ""):
        table.add_column(name, justify="right" if name else "left")
    for score in summary["scores"]:
        numbers = (f"{score['top1']:.2f}", f"{score['nll']:.4f}") if "nll" in score else ("", "")
        notes = ["chosen"] * (score["C"] == summary["C"]) + ["not converged"] * (not score["converged"])
        table.add_row(f"{score['C']:g}", *numbers, ", ".join(notes))
    table.caption = (
        f"{summary['train_samples']:,} labelled images in {summary['views']} views; features"
        f" {summary['features_s']:.1f} s, classifier {summary['fit_s']:.1f} s"
    )
    return table


def write_zero_shot(arguments: Sequence[str]) -> None:
    """Make a teacher from class names and prompts by a CLIP-like model."""
    from disk_kd.zeroshot import read_zero_shot, zero_shot  # here, because it is seldom used

    given = read_arguments(arguments)
    settings = read_zero_shot(given.words, given.tree)
    quiet = "quiet" in given.switches
    console = console_of(quiet, "log_json" in given.switches)
    done = zero_shot(settings, console)
    if isinstance(console, JsonConsole):
        console.event("end", folder=str(done.folder), **done.summary)
    elif quiet:
        print_paths(done.folder)
    else:
        found = done.summary
        words = ", ".join(list(found["words"].values())[:10]) + (", ..." if len(found["words"]) > 10 else "")
        again = " (made before)" if done.reused else ""
        console.print(
            f"{len(found['words'])} classes ({words}), {len(found['templates'])} prompts each, text side"
            f" {found['text_s']:.1f} s\nTeacher{again}: {done.folder}; disk-kd evaluate {done.folder} measures it on"
            " the test split",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def zero_shot_help(arguments: Sequence[str]) -> str:
    from disk_kd.zeroshot import ZeroShotSettings  # as in `write_zero_shot`

    about = (
        f"{write_zero_shot.__doc__} MODEL is transformers:FOLDER_OR_NAME or open_clip:FOLDER_OR_NAME. The folder that"
        " it writes is a teacher for every command: disk-kd distill --teacher.weights FOLDER."
    )
    return settings_help("zeroshot", about, ZeroShotSettings)
