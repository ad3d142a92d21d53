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
    "bench": "Measure what an epoch costs with each method, beside plain training and other tools.",
    "convert": "Turn a file of weights, such as a released .pth.tar, into safetensors, without running code in it.",
    "export": "Write a run's student as safetensors, a timm folder, torch.export or ONNX, checked against its logits.",
    "toy": "The toy problems of the paper's poster: each loss's minima, their accuracy, and a picture.",
    "list": "List models, methods, hints, datasets or recipes.",
}
"""What each command does."""
_RECIPE = ("RECIPE", "a name of `disk-kd list recipes`, a YAML file or a run directory; options override it")
_TEACHER = (
    ("--teacher.name NAME", "model to learn from (default: cifar_resnet10_l)"),
    ("--teacher.weights PATH", "its weights: a file, a run directory or recipe:NAME"),
)
_DATA = (
    ("--data.name NAME", "a dataset of `disk-kd list datasets` (default: digits)"),
    ("--data.root FOLDER", "folder of the data; digits need none"),
)
_TRAINING = (
    ("--train.epochs N", "epochs over the training data (default: 30)"),
    ("--train.batch_size N", "images in one optimiser step (default: 128)"),
    ("--train.lr RATE", "peak learning rate (default: 0.1)"),
    ("--train.device DEVICE", "cpu, cuda, cuda:1, mps; auto takes a GPU if there is one (default: auto)"),
    ("--output FOLDER", "run directory; without it RUNS/RECIPE/seedN"),
    ("--resume", "go on with the run in the output directory, or begin it"),
)
_STUDENT = ("--student.name NAME", "model to train, of timm or of this package (default: cifar_resnet10_s)")
COMMON = {
    "train": (_RECIPE, _STUDENT, *_DATA, *_TRAINING),
    "distill": (
        _RECIPE,
        _STUDENT,
        *_TEACHER,
        ("--method NAME", "a method of `disk-kd list methods` (default: kd)"),
        *_DATA,
        *_TRAINING,
    ),
    "store-teacher": (
        _RECIPE,
        *_TEACHER,
        ("--teacher.store_top_k N", "keep only the N largest logits of a sample"),
        ("--method NAME", "the method that will read the outputs (default: kd)"),
        *_DATA,
        ("--views N", "number of augmented views of each sample"),
        ("--train.device DEVICE", "cpu, cuda, cuda:1, mps; auto takes a GPU if there is one (default: auto)"),
        ("--runs FOLDER", "the outputs go to FOLDER/teacher-store (default: runs)"),
    ),
    "evaluate": (
        ("RUN or FILE", "a run directory, a file of weights, or cifar_resnet10_l or _s"),
        ("--model.name NAME", "needed where the weights do not say their model"),
        *_DATA,
        ("--split SPLIT", "test, validation or train (default: test)"),
        ("--device DEVICE", "cpu, cuda, cuda:1, mps; auto takes a GPU if there is one (default: auto)"),
        ("--json", "print one line of JSON"),
    ),
    "bench": (
        ("--student NAME", "a timm model (default: cifar_resnet10_s)"),
        ("--teachers LIST", "timm models (default: [cifar_resnet10_l])"),
        ("--classes N", "of the models and the labels (default: 100)"),
        ("--image_size N", "side of the images in pixels (default: 32)"),
        ("--samples N", "training images in a timed epoch (default: 1000)"),
        ("--batch_size N", "images in one optimiser step (default: 200)"),
        ("--peers true|false", "also time other tools (default: true)"),
        ("--sweeps true|false", "also time other sizes (default: true)"),
        ("--memory true|false", "also measure peak memory (default: true)"),
        ("--device DEVICE", "cpu, cuda, cuda:1, mps; auto takes a GPU if there is one (default: auto)"),
        ("--output FOLDER", "folder for tables and figures; without it they are only printed"),
    ),
}
"""The most used options of the commands that have many, and what they do."""
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
    if first in COMMON and {"-h", "--help"} & {*arguments} and "--to-accuracy" not in arguments:
        return short_help(first)
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


def short_help(command: str) -> str:
    """The most used options of a command of `COMMON`."""
    first = COMMON[command][0][0]
    positional = "" if first.startswith("-") else f"{first} " if " or " in first else f"[{first}] "
    rows = [f"  {option:<24} {text}" for option, text in COMMON[command]]
    more = {
        "train": " --print_config prints the settings and does nothing else.",
        "distill": " --print_config prints the settings and does nothing else.\n"
        "--help-all --method NAME shows the options of that method.",
    }
    return "\n".join(
        [
            f"usage: disk-kd {command} {positional}[options]",
            "",
            COMMANDS[command],
            "",
            *rows,
            "",
            f"--help-all shows every option, grouped.{more.get(command, '')}",
        ]
    )
