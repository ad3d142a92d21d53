"""The command `disk-kd`: help at once, everything else by `disk_kd.cli`, which takes seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "demo": "Five methods on digits with few and partly wrong labels, ten seeds each: a table and a report.",
    "train": "Train a model with cross-entropy: a teacher, or a baseline.",
    "distill": "Train a student, by default from a teacher, with any method.",
    "store-teacher": "Run a teacher once over all views of its training data, and keep its outputs.",
    "compare": "Run several recipes over several seeds, reuse what is finished, write a table.",
    "evaluate": "Measure a run's student, or a file of weights, on a dataset.",
    "report": "Write report.html of a run, or of several side by side: which student to ship, and why.",
    "inspect": "Write the training examples that the helper carries most as CSV, or whose labels are doubtful.",
    "bench": "Measure what a pass costs with each method, beside plain training and other tools.",
    "convert": "Turn a file of weights, such as a released .pth.tar, into safetensors, without running code in it.",
    "export": "Write a run's student as safetensors, a timm folder, torch.export or ONNX, checked against its logits.",
    "toy": "The toy problems of the paper's poster: each loss's minima, their accuracy, and a picture.",
    "list": "List models, methods, hints, datasets or recipes.",
}
"""What each command does."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


def main() -> int:
    """Run `disk-kd` with the arguments it was started with, and return its exit code (`disk_kd.cli.main`)."""
    arguments = sys.argv[1:]
    text = answer(arguments)
    if text is not None:
        print(text)
        return 0
    try:
        from disk_kd.cli import main as run  # here, because it takes seconds

        return run()
    except KeyboardInterrupt:
        print("disk-kd: interrupted", file=sys.stderr)
        return INTERRUPTED


def answer(arguments: Sequence[str]) -> str | None:
    """The answer to a question that needs no imports; None: it is none."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        return usage()
    return f"disk-kd {version('disk-kd')}" if first == "--version" else None


def usage() -> str:
    """The list of commands."""
    return "\n".join(
        [
            "usage: disk-kd [--debug] COMMAND ...",
            "",
            "Knowledge distillation for image classifiers.",
            "",
            *(f"  {name:<13} {text}" for name, text in COMMANDS.items()),
            "",
            "disk-kd COMMAND --help tells its options. --debug shows where an error comes from.",
        ]
    )
