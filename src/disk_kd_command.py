"""The command `disk-kd`. It answers --help at once; everything else is done by `disk_kd.cli`, which takes seconds to
import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "demo": "Compare five methods on digits with few and partly wrong labels; write a table and a report.",
    "train": "Train a model with cross-entropy, such as a teacher or a baseline.",
    "distill": "Train a student with any method; most methods learn from a teacher.",
    "store-teacher": "Run a teacher once over all views of the training data and store its outputs.",
    "compare": "Run several recipes over several seeds and write a table; finished runs are reused.",
    "probe": "Fit a linear classifier on a backbone's features, and write both as a teacher.",
    "advise": "Look at data, teacher and hardware before training: time, disk, memory, and what to try first.",
    "tune": "Search for the best method and settings in a given time, and measure what distillation gains with them.",
    "zeroshot": "Make a teacher from class names and prompts by a CLIP-like model.",
    "evaluate": "Measure a run's student, a file of weights, or teachers, on a dataset.",
    "report": "Write an HTML report about one run, or about several with advice on which student to ship.",
    "inspect": "Write a CSV file of training examples, ranked by the help they get or by how doubtful their label is.",
    "bench": "Measure the time and memory of an epoch with each method, with plain training and with other tools.",
    "convert": "Convert a file of weights, such as a released .pth.tar, to safetensors without running code in it.",
    "export": "Export a run's student to safetensors, timm, torch.export or ONNX, in float or int8, and certify it.",
    "predict": "Classify image files with a run, an exported file or a timm model; write CSV or lines of JSON.",
    "toy": "Run a toy problem of the DiSK paper's poster: each loss's minima, their accuracy, and a picture.",
    "list": "List models, methods, hints, datasets or recipes.",
}
"""The commands and their descriptions."""
_RECIPE = ("RECIPE", "Recipe name (`disk-kd list recipes`), YAML file or run directory; options override it")
_TEACHER = (
    ("--teacher.name NAME", "Teacher model (default: cifar_resnet10_l)"),
    ("--teacher.weights PATH", "Weights of the teacher: a file, a run directory or recipe:NAME"),
    ("--teacher.classes MAP", "Its classes, if they are others than the data's: auto, or a mapping"),
    ("--teacher '[{...}, {...}]'", "Several teachers, whose predictions are averaged"),
)
_DATA = (
    ("--data.name NAME", "Dataset; `disk-kd list datasets` lists them (default: digits)"),
    ("--data.root FOLDER", "Folder of the dataset; digits needs none"),
)
_TRAINING = (
    ("--train.epochs N", "Number of epochs (default: 30)"),
    ("--train.batch_size N", "Images in an optimiser step (default: 128)"),
    ("--train.lr RATE", "Peak learning rate (default: 0.1)"),
    ("--train.device DEVICE", "cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)"),
    ("--output FOLDER", "Run directory; by default RUNS/RECIPE/seedN"),
    ("--resume", "Resume the run in the output directory; start it if there is none"),
)
_STUDENT = ("--student.name NAME", "Model to train, from timm or this package (default: cifar_resnet10_s)")
COMMON = {
    "train": (_RECIPE, _STUDENT, *_DATA, *_TRAINING),
    "distill": (
        _RECIPE,
        _STUDENT,
        *_TEACHER,
        ("--method NAME", "Method; `disk-kd list methods` lists them (default: kd)"),
        *_DATA,
        *_TRAINING,
    ),
    "store-teacher": (
        _RECIPE,
        *_TEACHER,
        ("--teacher.store_top_k N", "Store only the N largest logits of each sample"),
        ("--method NAME", "Method that will read the outputs (default: kd)"),
        *_DATA,
        ("--views N", "Number of augmented views of each sample"),
        ("--train.device DEVICE", "cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)"),
        ("--runs FOLDER", "Outputs are stored in FOLDER/teacher-store (default: runs)"),
    ),
    "probe": (
        ("RECIPE", "Recipe with a teacher, which is the backbone; or a run or file of weights to probe"),
        ("--teacher.name NAME", "Backbone: a timm model, or my_module:make"),
        ("--teacher.weights PATH", "Weights of the backbone: a file or a run directory"),
        ("--teacher.pretrained true", "Load timm's pretrained weights; timm may download them"),
        *_DATA,
        ("--views N", "Number of augmented views of each training image; without it, one"),
        ("--grid LIST", "Values of C to try; without it, six from 0.0001 to 10"),
        ("--output FOLDER", "Folder of the teacher; by default RUNS/probe/BACKBONE"),
        ("--runs FOLDER", "Features are stored in FOLDER/teacher-store (default: runs)"),
        ("--device DEVICE", "cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)"),
    ),
    "advise": (
        _RECIPE,
        *_TEACHER,
        ("--method NAME", "Method; `disk-kd list methods` lists them (default: kd)"),
        *_DATA,
        ("--views N", "Number of augmented views of each sample"),
        ("--train.batch_size N", "Images in an optimiser step (default: 128)"),
        ("--train.device DEVICE", "cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)"),
        ("--json", "Print one line of JSON"),
    ),
    "zeroshot": (
        ("MODEL or FOLDER", "transformers:FOLDER_OR_NAME or open_clip:FOLDER_OR_NAME"),
        ("--pretrained true", "Allow the download of the model from the hub"),
        *_DATA,
        ("--names FILE", "File with the word of each class"),
        ("--templates LIST", "Prompts with {} in the place of the word"),
        ("--output FOLDER", "Folder of the teacher; by default RUNS/zeroshot/MODEL"),
    ),
    "evaluate": (
        ("RUN or FILE", "Run directory, file of weights, cifar_resnet10_l or cifar_resnet10_s"),
        ("--model.name NAME", "Model; needed if the file does not record it"),
        ("--teachers", "Measure the teachers of the run or recipe instead"),
        ("--teacher.name NAME ...", "Measure this teacher; the options are those of distill"),
        *_DATA,
        ("--split SPLIT", "Split to measure on: test, validation or train (default: test)"),
        ("--device DEVICE", "cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)"),
        ("--json", "Print one line of JSON"),
    ),
    "bench": (
        ("--student NAME", "Student, a timm model (default: cifar_resnet10_s)"),
        ("--teachers LIST", "Teachers, timm models (default: [cifar_resnet10_l])"),
        ("--classes N", "Number of classes (default: 100)"),
        ("--image_size N", "Image side in pixels (default: 32)"),
        ("--samples N", "Training images in a timed epoch (default: 1000)"),
        ("--batch_size N", "Images in an optimiser step (default: 200)"),
        ("--peers true|false", "Also time other tools (default: true)"),
        ("--sweeps true|false", "Also time other sizes (default: true)"),
        ("--memory true|false", "Also measure peak memory (default: true)"),
        ("--device DEVICE", "cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one (default: auto)"),
        ("--output FOLDER", "Folder for tables and figures; by default they are only printed"),
    ),
}
"""The most used options of the commands that have many options, with their help."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""


def main() -> int:
    """Run `disk-kd` with the arguments of this process, and return the exit code (`disk_kd.cli.main`)."""
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
    """The text for a question that needs no imports, such as --help; None for any other command."""
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
            "disk-kd COMMAND --help lists the options of a command. --debug shows the traceback of an error.",
        ]
    )


def short_help(command: str) -> str:
    """The most used options of a command in `COMMON`."""
    first = COMMON[command][0][0]
    positional = "" if first.startswith("-") else f"{first} " if " or " in first else f"[{first}] "
    rows = [f"  {option:<24} {text}" for option, text in COMMON[command]]
    more = {
        "train": " --print_config prints the settings and exits.",
        "distill": " --print_config prints the settings and exits.\n"
        "--help-all --method NAME also lists the options of that method.",
    }
    return "\n".join(
        [
            f"usage: disk-kd {command} {positional}[options]",
            "",
            COMMANDS[command],
            "",
            *rows,
            "",
            f"--help-all lists all options.{more.get(command, '')}",
        ]
    )
