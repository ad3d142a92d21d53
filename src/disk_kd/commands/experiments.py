"""The commands beside the toolkit: bench and toy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from disk_kd.arguments import parse_settings
from disk_kd.commands.parsing import Parser, TableConsole, count, parse_with_options, path
from disk_kd.help import settings_help


def run_bench(arguments: Sequence[str]) -> None:
    """Measure the time and memory of an epoch with each method, with plain training and with other tools."""
    if "--to-accuracy" in arguments:
        _bench_to_accuracy([argument for argument in arguments if argument != "--to-accuracy"])
        return
    from disk_kd.bench import BenchSettings, bench  # here, because matplotlib takes a second to import

    bench(parse_settings(BenchSettings, arguments), TableConsole())


def bench_help(arguments: Sequence[str]) -> str:
    from disk_kd.bench import BenchSettings  # as in `run_bench`

    about = (
        f"{run_bench.__doc__} Choose your own models and sizes: --student NAME --teachers '[NAME]' --image_size 224"
        " --classes 1000 --batch_size 64. Parts can be switched off: --peers false --sweeps false --memory false."
        " disk-kd bench --to-accuracy trains students until they reach an accuracy; it has its own --help."
    )
    return settings_help("bench", about, BenchSettings)


def _bench_to_accuracy(arguments: Sequence[str]) -> None:
    """Measure the time until a student reaches a validation accuracy, with our methods and with other tools."""
    from disk_kd.bench.to_accuracy import CONTESTANTS, DEFAULT, Race, to_accuracy  # as in `run_bench`

    parser = Parser(
        prog="disk-kd bench --to-accuracy",
        usage="disk-kd bench --to-accuracy [RECIPE] [options]",
        description=f"{_bench_to_accuracy.__doc__} RECIPE and all further options, such as --data.root DIR or"
        " --student.name NAME, are those of `disk-kd distill`. They apply to every contestant. The default RECIPE"
        " is cifar100/pretrained-resnet10_s. The contestants take turns of one epoch each. If the command is stopped,"
        " start it again to go on.",
    )
    parser.add_argument(
        "--target",
        type=float,
        action="append",
        default=[],
        help="Validation top-1 accuracy in percent. Can be given several times.",
    )
    parser.add_argument("--epochs", type=count, help="Number of epochs of every contestant (default: the recipe's).")
    others = " ".join(name for name in CONTESTANTS if name not in DEFAULT)
    which = f"Contestants (default: {' '.join(DEFAULT)}). Also: {others}."
    parser.add_argument("--contestants", nargs="+", metavar="NAME", default=list(DEFAULT), help=which)
    alone = "Option of one contestant alone, such as plain_ce train.weight_decay=5e-4. Can be given several times."
    parser.add_argument("--only", nargs=2, metavar=("NAME", "OPTION=VALUE"), action="append", default=[], help=alone)
    parser.add_argument(
        "--workers", type=int, help="Worker processes of the other tools' loaders (default: one for each core)."
    )
    kept = "Folder whose subfolder to-accuracy holds the state of a stopped measurement (default: runs)."
    parser.add_argument("--runs", type=path, default=Path("runs"), help=kept)
    parser.add_argument("--output", type=path, help="Folder for the table, the curves and the picture.")
    recipe = list(arguments[:1]) if arguments and not arguments[0].startswith("-") else []
    options, rest = parse_with_options(arguments[len(recipe) :], parser)
    length = [] if options.epochs is None else [f"--train.epochs={options.epochs}"]
    race = Race(
        options=(*recipe, *rest, *length),
        contestants=tuple(options.contestants),
        own=tuple((name, option) for name, option in options.only),
        targets=tuple(options.target),
        workers=options.workers,
        runs=options.runs,
        output=options.output,
    )
    to_accuracy(race, TableConsole())


def toy(arguments: Sequence[str]) -> None:
    """Run a toy problem of the DiSK paper's poster: each loss's minima, their accuracy, and a picture."""
    from disk_kd.toy import run_toy  # here, because matplotlib takes a second to import

    parser = Parser(prog="disk-kd toy", description=f"{toy.__doc__} It takes under a minute on one core (docs/toy.md).")
    parser.add_argument("problem", choices=("intervals", "gaussians"))
    parser.add_argument("--starts", type=count, help="Number of students for each loss (default: 200; gaussians: 100).")
    parser.add_argument(
        "--seed", type=int, default=0, help="Random seed of the students and of the Gaussians' data (default: 0)."
    )
    parser.add_argument("--output", type=path, help="Folder to write to (default: runs/toy-PROBLEM).")
    options = parser.parse_args(arguments)
    folder = run_toy(
        options.problem, starts=options.starts, seed=options.seed, output=options.output, console=TableConsole()
    )
    print(f"Picture and numbers: {folder}")
