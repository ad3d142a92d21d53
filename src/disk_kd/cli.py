"""The command line: one function for each command, one line for each error."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from disk_kd import ranks
from disk_kd.advising import advise, page
from disk_kd.arguments import EVALUATION_SWITCHES, parse_evaluation, parse_run, parse_settings, read_arguments
from disk_kd.comparison import (
    DEMO,
    Experiment,
    check_comparison,
    compare,
    demo_text,
    of_recipes,
    read_experiment,
    with_control,
)
from disk_kd.comparison.experiment import is_experiment
from disk_kd.data import DATASETS, workers_watched
from disk_kd.errors import ConfigError, DataError, DiskKDError, RunError, nearest, one_line
from disk_kd.export import CALIBRATION_IMAGES, FORMATS, MAX_DROP, certificate_path, check_name, export, push
from disk_kd.files import check_replaceable, replacing, user_path, write_text
from disk_kd.help import evaluation_help, run_help, settings_help
from disk_kd.hints import HINTS
from disk_kd.inference import (
    FORMATS as PREDICTION_FORMATS,
)
from disk_kd.inference import (
    calibration_text,
    check_paths,
    counted,
    image_files,
    listed_files,
    open_classifier,
    predict_files,
)
from disk_kd.inference import lines as prediction_lines
from disk_kd.measure import TeacherEvaluation, evaluate_teachers, evaluate_weights
from disk_kd.memory import keep_memory
from disk_kd.models import convert, create_model, multiply_adds
from disk_kd.old_names import OldNameWarning
from disk_kd.plugins import IMPORT_HELP, import_modules, user_code_location
from disk_kd.recipe import list_recipes
from disk_kd.run import execute, store_teacher
from disk_kd.tasks import METHODS
from disk_kd.teacher import TeacherStore
from disk_kd.training import (
    STOPPED,
    JsonConsole,
    RunConsole,
    StoppedError,
    StopSignal,
    drop_output,
    json_line,
    stop_signals,
)
from disk_kd_command import INTERRUPTED, answer

UNREAD = 141
"""Exit code when the reader of the output closes it early, as shells report SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `disk-kd ARGUMENTS` and return its exit code.

    0: success; 1: unexpected error; 2: bad input, or a failed run; 75: stopped, the run can be resumed; 130:
    interrupted; 141: the reader of the output closed it.
    """
    if arguments is None:  # called as the command, not from another program
        arguments = sys.argv[1:]
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # child processes do not import from the working directory
        threading.excepthook = _thread_failed
        warnings.formatwarning = lambda message, *_, **__: f"disk-kd: {message}\n"
        warnings.showwarning = _hold_old_names
    debug, arguments = "--debug" in arguments, [argument for argument in arguments if argument != "--debug"]
    _replace_unprintable()
    if (text := answer(arguments)) is not None:
        print(text)
        return 0
    keep_memory()
    logging.getLogger("timm.data").setLevel(logging.ERROR)  # its warnings repeat our errors
    try:
        _run(*arguments)
        sys.stdout.flush()
        if not {"--quiet", "--log-json"} & {*arguments}:
            print(*(f"disk-kd: {notice}\n" for notice in dict.fromkeys(_notices)), sep="", end="", file=sys.stderr)
        return 0
    except BrokenPipeError:
        drop_output()
        return UNREAD
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            _show_traceback(error)
        code, message = _exit_code_and_message(error)
        print(f"disk-kd: {message}", file=sys.stderr)
        return code


_NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError."""
_notices: list[str] = []
"""Of options that were given by old names: shown when the command succeeded, so that an error stays one line."""
_show_warning = warnings.showwarning


def _hold_old_names(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, OldNameWarning):
        _notices.append(str(message))
    else:
        _show_warning(message, category, *where, **more)


def _run(name: str, *arguments: str) -> None:
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {nearest(name, COMMANDS)}; disk-kd --help lists them")
    if "--help-all" in arguments and name in EVERY_OPTION:
        print(EVERY_OPTION[name]([argument for argument in arguments if argument != "--help-all"]))
        return
    with stop_signals(), workers_watched():
        COMMANDS[name](arguments)


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """The exit code and the one-line message of an error."""
    if isinstance(error, StoppedError | StopSignal):
        return STOPPED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; go on with --resume (compare, tune: the same command again)"
    if isinstance(error, DiskKDError):
        return 2, str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY in str(error):
        reason = one_line(error).partition(". ")[0]
        return 2, f"{reason}; lower train.batch_size or the image size, or raise train.accumulate"
    kind = f"{type(error).__name__}: {one_line(error)}"
    if (place := user_code_location(error)) is not None:
        return 2, f"{place}: {kind}; --debug shows the traceback"
    if isinstance(error, OSError):
        return 2, f"{one_line(error)}; files written before are complete"
    return 1, f"unexpected error: {kind}; --debug shows the traceback for a bug report"


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Ignore a file that TensorBoard's thread cannot write. The main thread gets the same error and reports it."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def _show_traceback(error: BaseException) -> None:
    """Print the traceback of an error, with those of its causes."""
    each: BaseException | None = error
    while each is not None:
        each.__suppress_context__ = False
        each = each.__cause__ or each.__context__
    traceback.print_exception(error)


def _replace_unprintable() -> None:
    """Print a question mark for each character that the terminal or file cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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
    console = _console(quiet, "log_json" in given.switches)
    summary = execute(config, console)
    if isinstance(console, JsonConsole):
        console.event("end", run=str(config.output), summary=summary)
    elif quiet:
        _last_line(config.output)
    else:
        console.print(summary_table(summary))
        console.print(f"Run directory: {config.output}", highlight=False, markup=False, soft_wrap=True)


def store_outputs(arguments: Sequence[str]) -> None:
    """Run a teacher once over all views of the training data and store its outputs."""
    given = read_arguments(arguments)
    config = parse_run("store-teacher", arguments)
    quiet = "quiet" in given.switches
    console = _console(quiet, "log_json" in given.switches)
    store = store_teacher(config, console)
    if isinstance(console, JsonConsole):
        paths = [str(member.path) for member in store.members]
        console.event("end", store=paths[0] if len(paths) == 1 else paths)
    elif quiet:
        _last_line(*(member.path for member in store.members))
    else:
        for member in store.members:
            console.print(store_table(member))


def _console(quiet: bool, as_json: bool) -> Console:
    """The console of a command. Only the main rank prints."""
    if quiet and as_json:
        raise ConfigError("--quiet prints no log and --log-json prints all of it; give one of the two")
    if as_json and ranks.is_main():
        return JsonConsole()
    return RunConsole(quiet=quiet or not ranks.is_main())


def _last_line(*paths: Path) -> None:
    """Print the paths that a quiet command wrote."""
    if ranks.is_main():
        print(*paths, sep="\n")


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


def demo(arguments: Sequence[str]) -> None:
    """Compare five methods on digits with few and partly wrong labels; write a table and a report."""
    parser = _Parser(prog="disk-kd demo", description=demo.__doc__)
    parser.add_argument(
        "--runs", type=path, default=Path("runs/demo"), help="Folder of run directories (default: runs/demo)."
    )
    parser.add_argument("--seeds", type=count, default=10, help="Number of seeds (default: 10).")
    parser.add_argument(
        "--jobs", type=count, default=ranks.cores(), help="Runs in parallel (default: one for each core)."
    )
    _add_output_options(parser)
    options = parser.parse_args(arguments)
    console = _console(options.quiet, options.log_json)
    console.print(demo_text(options.seeds, options.jobs), highlight=False, soft_wrap=True)
    recipes = [f"digits-demo/{name}" for name in DEMO]
    experiment = of_recipes(recipes, options.seeds, recipes[0])
    report = _reporter if options.report == "true" else None
    done = compare(experiment, runs=options.runs, name="report", jobs=options.jobs, console=console, report=report)
    if options.quiet:
        _last_line(*done.written)


def compare_recipes(arguments: Sequence[str]) -> None:
    """Run several recipes over several seeds and write a table; finished runs are reused."""
    parser = _Parser(
        prog="disk-kd compare",
        description="Run recipes over several seeds, and first the teachers and starting points that they name."
        " Finished runs are reused, unfinished runs are resumed. RECIPE can also be an experiment, a YAML file of rows"
        " (docs/experiments.md). A row can try several settings and keep the best on validation. Several experiments"
        " run one after another. Further options, such as --data.root DIR, apply to all runs; --data... and"
        " --train... also apply to the runs that train teachers and starting points.",
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="Recipe name, recipe file or experiment file.")
    parser.add_argument(
        "--seeds", type=count, help="Number of seeds, counted from 0 (default: the experiment's, or 3)."
    )
    parser.add_argument("--baseline", metavar="RECIPE", help="Show the gain of the other recipes over this one.")
    against = "Add the first RECIPE with this method, such as ce, as the baseline."
    parser.add_argument("--against", metavar="METHOD", help=against)
    runs = "Folder of the run directories and the table (default: runs)."
    parser.add_argument("--runs", type=path, default=Path("runs"), help=runs)
    parser.add_argument(
        "--jobs", type=count, default=1, help="Runs in parallel; they share cores and GPUs (default: 1)."
    )
    _add_import(parser)
    _add_output_options(parser)
    options, rest = parser.parse_known_args(_joined(arguments, parser))
    own = read_arguments([*rest, *(f"--import={name}" for name in options.imports)]).tree
    if any(map(is_experiment, options.recipes)):
        experiments = _experiments(options)
    elif options.against:
        if options.baseline:
            raise ConfigError("--against adds the baseline; leave --baseline out")
        experiments = {"compare": with_control(options.recipes, options.seeds or 3, options.against, own)}
    else:
        experiments = {"compare": of_recipes(options.recipes, options.seeds or 3, options.baseline)}
    console = _console(options.quiet, options.log_json)
    for experiment in experiments.values() if len(experiments) > 1 else ():
        check_comparison(experiment, runs=options.runs, options=own)
    shared: dict[str, Any] = {"runs": options.runs, "options": own, "jobs": options.jobs, "console": console}
    shared["report"] = _reporter if options.report == "true" else None
    written, failed = list[Path](), list[str]()
    for name, experiment in experiments.items():
        try:
            written += compare(experiment, name=name, **shared).written
        except RunError as error:  # the other experiments can still run
            if len(experiments) == 1:
                raise
            failed.append(f"{name}: {error}")
    if options.quiet:
        _last_line(*written)
    if failed:
        raise RunError("; ".join(failed))


def tune_recipe(arguments: Sequence[str]) -> None:
    """Search for the best method and settings in a given time, and measure what distillation gains with them."""
    from disk_kd.tuning import read_request, tune  # here, because matplotlib takes a second to import

    parser = _Parser(
        prog="disk-kd tune",
        description=f"{tune_recipe.__doc__} Cross-entropy on the labels alone always takes part, with at least the effort"
        " of every other method. Validation chooses; the test split is read once, at the end. The same command goes on"
        " with a search that was stopped or killed. Further options, such as --data.root DIR or --train.epochs N, apply"
        " to all runs (docs/tune.md).",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="Recipe name or recipe file.")
    parser.add_argument("--hours", type=float, help="Time for all of it, in hours. Give --hours or --runs.")
    length = "Length of the search, in runs of full length, over all methods; the confirmation comes on top."
    parser.add_argument("--runs", type=count, metavar="N", help=length)
    methods = "Methods, or METHOD+HINT (default: ce, kd, dist and the recipe's)."
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=methods)
    space = "YAML file with the search space (default: the key tune of the recipe, or the usual options)."
    parser.add_argument("--space", type=path, metavar="FILE", help=space)
    parser.add_argument("--seeds", type=count, default=3, help="Seeds of the confirmation (default: 3).")
    parser.add_argument(
        "--jobs", type=count, default=1, help="Runs in parallel; they share cores and GPUs (default: 1)."
    )
    folder = "Folder of run directories and the teacher store (default: runs)."
    parser.add_argument("--folder", type=path, default=Path("runs"), help=folder)
    parser.add_argument("--output", type=path, help="Folder of the search (default: FOLDER/tune/RECIPE).")
    _add_import(parser)
    _add_quiet(parser)
    options, rest = parser.parse_known_args(_joined(arguments, parser))
    given = read_arguments([*rest, *(f"--import={name}" for name in options.imports)])
    if given.words:
        raise ConfigError(f"one recipe at a time, not also {given.words[0]}")
    import_modules(options.imports)
    request = read_request(
        options.recipe,
        given.tree,
        hours=options.hours,
        full_runs=options.runs,
        methods=options.methods,
        space=options.space,
        seeds=options.seeds,
        jobs=options.jobs,
        runs=options.folder,
        output=options.output,
    )
    done = tune(request, _console(options.quiet, options.log_json))
    if options.quiet:
        _last_line(*done.written)


def advise_run(arguments: Sequence[str]) -> None:
    """Look at data, teacher and hardware before training: time, disk, memory, and what to try first."""
    given = read_arguments(arguments)
    config = parse_run("distill", arguments)
    found = advise(config, " ".join(given.words) or "RECIPE")
    if "json" in given.switches:
        print(json_line(found.as_dict()), end="")
    else:
        print(page(found))


def _experiments(options: argparse.Namespace) -> dict[str, Experiment]:
    """The experiments of the given files, by table name, in order."""
    others = [name for name in options.recipes if not is_experiment(name)]
    if others or options.baseline or options.against:
        what = others[0] if others else "--baseline" if options.baseline else "--against"
        raise ConfigError(f"an experiment file names its rows and its baseline; leave {what} out")
    paths = {Path(name).stem: user_path(name) for name in options.recipes}
    if len(paths) < len(options.recipes):
        raise ConfigError(
            f"experiments with the same name would share their tables: {', '.join(options.recipes)}; rename one"
        )
    return {name: read_experiment(path, options.seeds) for name, path in paths.items()}


def _joined(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments with --OPTION VALUE of a run written as --OPTION=VALUE, so that no value is read as a recipe."""
    joined, left = list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        of_runs = argument.startswith("--") and "=" not in argument and argument not in parser._option_string_actions
        if of_runs and left and not left[0].startswith("--"):
            argument = f"{argument}={left.pop(0)}"
        joined.append(argument)
    return joined


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        choices=("true", "false"),
        default="true",
        help="Write an HTML report of the comparison (default: true).",
    )
    _add_quiet(parser)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quiet", action="store_true", help="Print only errors and, at the end, the paths that were written."
    )
    parser.add_argument("--log-json", action="store_true", help="Print only the log, as lines of JSON.")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE", help=IMPORT_HELP)


def _reporter(rows: Mapping[str, Sequence[Path]], baseline: str | None, output: Path, differing: str) -> None:
    from disk_kd.report import report_comparison  # as in `write_report`

    report_comparison(rows, baseline, output, differing)


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
    _Tables().print(table)


def probe_backbone(arguments: Sequence[str]) -> None:
    """Fit a linear classifier on a backbone's features, and write both as a teacher."""
    from disk_kd.probe import probe, read_probe  # here, because scikit-learn takes a second to import

    given = read_arguments(arguments)
    request = read_probe(given.words, given.tree)
    quiet = "quiet" in given.switches
    console = _console(quiet, "log_json" in given.switches)
    done = probe(request, console)
    if isinstance(console, JsonConsole):
        console.event("end", folder=str(done.folder), **done.summary)
    elif quiet:
        _last_line(done.folder)
    elif ranks.is_main():
        console.print(probe_table(done.folder, done.summary))
        again = " (made before)" if done.reused else ""
        console.print(
            f"Teacher{again}: {done.folder}; disk-kd evaluate {done.folder} measures it on the test split",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _probe_help(arguments: Sequence[str]) -> str:
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
        f"{summary['train_samples']:,} labelled images in {summary['views']} views; features {summary['features_s']:.1f} s,"
        f" classifier {summary['fit_s']:.1f} s"
    )
    return table


def write_zero_shot(arguments: Sequence[str]) -> None:
    """Make a teacher from class names and prompts by a CLIP-like model."""
    from disk_kd.zeroshot import read_zero_shot, zero_shot  # here, because it is seldom used

    given = read_arguments(arguments)
    settings = read_zero_shot(given.words, given.tree)
    quiet = "quiet" in given.switches
    console = _console(quiet, "log_json" in given.switches)
    done = zero_shot(settings, console)
    if isinstance(console, JsonConsole):
        console.event("end", folder=str(done.folder), **done.summary)
    elif quiet:
        _last_line(done.folder)
    else:
        found = done.summary
        words = ", ".join(list(found["words"].values())[:10]) + (", ..." if len(found["words"]) > 10 else "")
        again = " (made before)" if done.reused else ""
        console.print(
            f"{len(found['words'])} classes ({words}), {len(found['templates'])} prompts each, text side"
            f" {found['text_s']:.1f} s\nTeacher{again}: {done.folder}; disk-kd evaluate {done.folder} measures it on the"
            " test split",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _zero_shot_help(arguments: Sequence[str]) -> str:
    from disk_kd.zeroshot import ZeroShotSettings  # as in `write_zero_shot`

    about = (
        f"{write_zero_shot.__doc__} MODEL is transformers:FOLDER_OR_NAME or open_clip:FOLDER_OR_NAME. The folder that it"
        " writes is a teacher for every command: disk-kd distill --teacher.weights FOLDER."
    )
    return settings_help("zeroshot", about, ZeroShotSettings)


def run_bench(arguments: Sequence[str]) -> None:
    """Measure the time and memory of an epoch with each method, with plain training and with other tools."""
    if "--to-accuracy" in arguments:
        _bench_to_accuracy([argument for argument in arguments if argument != "--to-accuracy"])
        return
    from disk_kd.bench import BenchSettings, bench  # here, because matplotlib takes a second to import

    bench(parse_settings(BenchSettings, arguments), _Tables())


def _bench_help(arguments: Sequence[str]) -> str:
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

    parser = _Parser(
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
    options, rest = parser.parse_known_args(_joined(arguments[len(recipe) :], parser))
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
    to_accuracy(race, _Tables())


def write_report(arguments: Sequence[str]) -> None:
    """Write an HTML report about one run, or about several with advice on which student to ship."""
    from disk_kd.report import report  # here, because matplotlib takes a second to import

    parser = _Parser(prog="disk-kd report", description=write_report.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="Run directory, or folder of run directories."
    )
    parser.add_argument(
        "--output",
        type=path,
        help="File to write (default: report.html in the run directory, if there is one RUN).",
    )
    parser.add_argument("--device", default="auto", help="Device on which students and teachers run (default: auto).")
    _add_import(parser)
    options = parser.parse_args(arguments)
    import_modules(options.imports)
    if options.output is not None:
        check_replaceable(options.output)
    print(f"Written: {report(options.runs, output=options.output, device=options.device)}")


def inspect_examples(arguments: Sequence[str]) -> None:
    """Write a CSV file of training examples, ranked by the help they get or by how doubtful their label is."""
    from disk_kd.report import RANKINGS, Outputs, Run, csv_text, faults_table, inspect_run  # as in `write_report`

    parser = _Parser(prog="disk-kd inspect", description=inspect_examples.__doc__)
    parser.add_argument("run", type=path, metavar="RUN", help="Finished run of a method with a teacher.")
    parser.add_argument("--output", type=path, help="File to write (default: RUN/inspect.csv).")
    parser.add_argument("--by", choices=RANKINGS, default="help", help="Ranking of the examples (default: help).")
    parser.add_argument(
        "--views", type=count, default=4, help="Number of augmented views of each example (default: 4)."
    )
    parser.add_argument("--limit", type=count, help="Maximum number of examples, evenly spaced (default: all).")
    price = "Price of help (default: the final price of RUN if its helper is exact, else 0)."
    parser.add_argument("--price", type=float, help=price)
    parser.add_argument("--device", default="auto", help="Device on which student and teacher run (default: auto).")
    _add_import(parser)
    options = parser.parse_args(arguments)
    import_modules(options.imports)
    if options.price is not None and not 0 <= options.price < math.inf:
        raise ConfigError(f"--price must be at least 0 and finite, not {options.price}")
    run, output = Run.read(options.run), options.output or options.run / "inspect.csv"
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent} for {output.name}; create it first")
    check_replaceable(output)
    found = inspect_run(run, Outputs(options.device), views=options.views, most=options.limit, price=options.price)
    write_text(output, csv_text(found, options.by))
    print(f"Written: {output}, {len(found.split):,} examples; {found.helper.name}: {found.helper.settings}")
    if found.flipped is not None:
        _Tables().print(faults_table(found))


def convert_checkpoint(arguments: Sequence[str]) -> None:
    """Convert a file of weights, such as a released .pth.tar, to safetensors without running code in it."""
    parser = _Parser(prog="disk-kd convert", description=convert_checkpoint.__doc__)
    parser.add_argument("checkpoint", type=path, help="File of weights to read.")
    parser.add_argument(
        "--output", type=path, help="File to write (default: beside the input, with suffix .safetensors)."
    )
    half = "Store convolutions and linear layers in half precision, for half the size."
    parser.add_argument("--half", action="store_true", help=half)
    options = parser.parse_args(arguments)
    if not options.checkpoint.is_file():
        raise ConfigError(f"no file of weights at {options.checkpoint}; give the file to convert")
    name = options.checkpoint.name.removesuffix(".tar")
    output = options.output or options.checkpoint.with_name(Path(name).stem + ".safetensors")
    check_replaceable(output)
    counts = convert(options.checkpoint, output, half=options.half)
    print(f"{output}: {counts['tensors']} tensors, {counts['parameters']:,} parameters")


def export_student(arguments: Sequence[str]) -> None:
    """Export a run's student to safetensors, a timm folder, torch.export or ONNX, in float or int8, and certify it."""
    parser = _Parser(prog="disk-kd export", description=export_student.__doc__)
    parser.add_argument("run", type=path, help="Run directory, or file of weights that a run wrote.")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="File format (default: safetensors).")
    parser.add_argument("--output", type=path, help="File or timm folder to write (default: RUN/export/MODEL.SUFFIX).")
    half = "For safetensors: store convolutions and linear layers in half precision, for half the size."
    parser.add_argument("--half", action="store_true", help=half)
    inside = "For torch.export and onnx: the exported model takes pixels in [0, 1] and normalises them."
    parser.add_argument("--with-normalisation", action="store_true", help=inside)
    parser.add_argument("--quantise", choices=("int8",), help="For torch.export and onnx: compute in 8-bit integers.")
    images = f"Training images that give the ranges of int8 activations (default: {CALIBRATION_IMAGES})."
    parser.add_argument("--calibration", type=count, default=CALIBRATION_IMAGES, metavar="N", help=images)
    certified = "Measure the file in its runtime and write a certificate beside it (default: true for a run directory)."
    parser.add_argument("--certify", choices=("true", "false"), help=certified)
    drop = f"Points of top-1 that a certified file may lose, on validation or test (default: {MAX_DROP:g})."
    parser.add_argument("--max-drop", type=float, default=MAX_DROP, metavar="POINTS", help=drop)
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export.")
    parser.add_argument("--push", metavar="USER/NAME", help="For timm: upload the folder to the Hugging Face hub.")
    parser.add_argument("--private", action="store_true", help="With --push: a new repository is private.")
    dry = "With --push: list what would be uploaded, without network."
    parser.add_argument("--dry-run", action="store_true", help=dry)
    _add_import(parser)
    options = parser.parse_args(arguments)
    _check_push(options)
    certify = options.run.is_dir() if options.certify is None else options.certify == "true"
    done = export(
        options.run,
        options.format,
        options.output,
        half=options.half,
        with_normalisation=options.with_normalisation,
        overwrite=options.overwrite,
        imports=options.imports,
        int8=options.quantise == "int8",
        calibration=options.calibration,
        certified=certify,
        max_drop=options.max_drop,
    )
    allowed = "" if done.allowed is None else f" ({done.allowed:.1e} allowed)"
    print(f"{done.path}: logits within {done.difference:.1e} of the student's{allowed}")
    if done.certificate is not None:
        _Tables().print(certificate_table(done.certificate.content))
        print(f"Certificate: {certificate_path(done.path)}")
    if options.push is not None:
        pushed = push(done.path, options.push, private=options.private, dry_run=options.dry_run)
        files = ", ".join(f"{name} ({size:,} bytes)" for name, size in pushed.files.items())
        print(f"{'Pushed' if pushed.done else 'Would push'} {files} to {pushed.url}")


def _check_push(options: argparse.Namespace) -> None:
    if options.push is None:
        for name in ("private", "dry_run"):
            if getattr(options, name):
                raise ConfigError(f"--{name.replace('_', '-')} needs --push USER/NAME; leave it out")
        return
    check_name(options.push)
    if options.format != "timm":
        raise ConfigError(f"--push uploads a timm folder, not {options.format}; give --format timm")


def certificate_table(certificate: dict[str, Any]) -> Table:
    """What an exported file scores, and how large and fast it is, beside the float student and the teacher."""
    table = Table(title=escape(f"{certificate['file']} ({certificate['precision']}) in {certificate['runtime']}"))
    splits, single = list(certificate["splits"]), dict[str, Any](justify="right")
    last = splits[-1] if splits else ""
    table.add_column("")
    times = {
        (each["model"], each["batch"]): each["median_ms"] for each in certificate["latency"] if each["threads"] == 1
    }
    batches = sorted({batch for _, batch in times})
    short = {"validation": "top-1 val"}
    for name in (*(short.get(split, f"top-1 {split}") for split in splits), "NLL", "ECE", "= float", "KiB"):
        table.add_column(name, **single)
    for batch in batches:
        table.add_column(f"ms for {batch}", **single)
    sizes = {"export": certificate["bytes"], "float": certificate["float_bytes"] or certificate["float"]["bytes"]}
    parts = {"export": certificate, "float": certificate["float"], "teacher": certificate["teacher"]}
    for model, part in parts.items():
        if part is None or not splits:
            continue
        m, size = part["splits"][last], sizes.get(model, part["bytes"])
        same = f"{m['agreement_float']:.2f}" if "agreement_float" in m else ""
        top1 = (f"{part['splits'][split]['top1']:.2f}" for split in splits)
        speeds = (f"{times[model, batch]:.3g}" for batch in batches)
        table.add_row(model, *top1, f"{m['nll']:.4f}", f"{m['ece']:.4f}", same, f"{size / 1024:.0f}", *speeds)
    table.caption = f"= float: % of images with the same class. NLL, ECE and = float on {last}. Time on one thread."
    return table


def predict_images(arguments: Sequence[str]) -> None:
    """Classify image files with a run, an exported file or a timm model; write CSV or lines of JSON."""
    parser = _Parser(
        prog="disk-kd predict",
        description=f"{predict_images.__doc__} Images are prepared as in evaluation. Probabilities are calibrated by"
        " the run's temperature, if it has one.",
    )
    what = "Run directory, file of weights, .onnx or .pt2 file, timm folder, or timm name with --pretrained."
    parser.add_argument("model", metavar="MODEL", help=what)
    images = "Image files, folders and uncompressed tars; - reads a list of them from standard input, one a line."
    parser.add_argument("images", nargs="*", metavar="IMAGES", help=images)
    parser.add_argument("--from-list", type=path, metavar="FILE", help="File with a list of images, one a line.")
    parser.add_argument("--format", choices=PREDICTION_FORMATS, default="csv", help="Output format (default: csv).")
    parser.add_argument("--output", type=path, help="File to write (default: standard output).")
    parser.add_argument("--top-k", type=count, default=5, metavar="K", help="Classes of each image (default: 5).")
    parser.add_argument("--batch-size", type=count, metavar="N", help="Images in a batch (default: as in evaluation).")
    skip = "Leave out images that cannot be read, and name each on standard error."
    parser.add_argument("--skip-unreadable", action="store_true", help=skip)
    parser.add_argument("--pretrained", action="store_true", help="Let timm download pretrained weights of MODEL.")
    parser.add_argument("--quiet", action="store_true", help="No progress and no notes on standard error.")
    _add_import(parser)
    options = parser.parse_args(arguments)
    if options.output is not None:
        check_replaceable(options.output)
    paths = _image_paths(options.images, options.from_list)
    classifier = open_classifier(options.model, pretrained=options.pretrained, imports=options.imports)
    top_k = min(options.top_k, len(classifier.classes))
    show = _Tables(stderr=True, quiet=options.quiet)
    skipped = (lambda message: print(f"left out: {message}", file=sys.stderr)) if options.skip_unreadable else None
    show.print(calibration_text(classifier), highlight=False, markup=False, soft_wrap=True)
    predictions = predict_files(
        classifier, image_files(paths), top_k=top_k, batch_size=options.batch_size, skipped=skipped
    )
    text = prediction_lines(counted(predictions, show), options.format, top_k)
    if options.output is None:
        sys.stdout.writelines(text)
        return
    with replacing(options.output) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(text)


def _image_paths(images: Sequence[str], listed: Path | None) -> Iterable[str]:
    """The paths of the command line, of a list, or of standard input."""
    if listed is not None:
        if images:
            raise ConfigError("--from-list names the images; leave the others out")
        try:
            return list(listed_files(io.StringIO(listed.read_text(encoding="utf-8", errors="surrogateescape"))))
        except OSError as error:
            raise DataError(f"the list {listed} cannot be read: {error.strerror}") from None
    if list(images) == ["-"]:
        return listed_files(sys.stdin)
    if not images:
        raise ConfigError("no images: give files, folders or tars, - for a list on standard input, or --from-list FILE")
    if "-" in images:
        raise ConfigError("- reads a list of images from standard input; give it alone")
    check_paths(images)
    return images


def toy(arguments: Sequence[str]) -> None:
    """Run a toy problem of the DiSK paper's poster: each loss's minima, their accuracy, and a picture."""
    from disk_kd.toy import run_toy  # here, because matplotlib takes a second to import

    parser = _Parser(
        prog="disk-kd toy", description=f"{toy.__doc__} It takes under a minute on one core (docs/toy.md)."
    )
    parser.add_argument("problem", choices=("intervals", "gaussians"))
    parser.add_argument("--starts", type=count, help="Number of students for each loss (default: 200; gaussians: 100).")
    parser.add_argument(
        "--seed", type=int, default=0, help="Random seed of the students and of the Gaussians' data (default: 0)."
    )
    parser.add_argument("--output", type=path, help="Folder to write to (default: runs/toy-PROBLEM).")
    options = parser.parse_args(arguments)
    folder = run_toy(
        options.problem, starts=options.starts, seed=options.seed, output=options.output, console=_Tables()
    )
    print(f"Picture and numbers: {folder}")


def list_names(arguments: Sequence[str]) -> None:
    """List models, methods, hints, datasets or recipes."""
    parser = _Parser(prog="disk-kd list", description=list_names.__doc__)
    parser.add_argument("what", choices=("models", "methods", "hints", "datasets", "recipes"))
    parser.add_argument(
        "word",
        nargs="?",
        default="",
        help="List only names that contain this word. With models, timm's models are searched too.",
    )
    options = parser.parse_args(arguments)
    what, word = options.what, options.word.lower()
    table = Table(title=what)
    if what == "models":
        for column in ("model", "parameters", "multiply-adds"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name in filter(lambda name: word in name, timm.list_models("cifar_*")):
            model = create_model(name, num_classes=100)
            parameters = sum(p.numel() for p in model.parameters())
            table.add_row(name, f"{parameters:,}", f"{multiply_adds(model, (3, 32, 32)):,}")
        for name in timm.list_models(f"*{word}*", exclude_filters="cifar_*") if word else ():
            table.add_row(name, "", "")
        table.caption = "For 3x32x32 images and 100 classes. Every timm model can be used by its name too."
    else:
        entries = {
            "methods": lambda: _first_lines(METHODS),
            "hints": lambda: _first_lines(HINTS),
            "datasets": lambda: DATASETS,
            "recipes": list_recipes,
        }[what]()
        table.add_column("name", no_wrap=True)
        table.add_column("description")
        for name, text in entries.items():
            if word in name.lower():
                table.add_row(name, escape(text))
    if not table.row_count:
        raise ConfigError(f"no name of the {what} contains {word!r}; disk-kd list {what} shows all")
    _Tables().print(table)


def _first_lines(classes: Mapping[str, type]) -> dict[str, str]:
    return {name: (kind.__doc__ or "").splitlines()[0] for name, kind in classes.items()}


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


class _Tables(Console):
    """A console for commands other than runs. It ends the command when the reader of the output closes it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Parser(argparse.ArgumentParser):
    """argparse with our errors. Abbreviated option names are not accepted."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        unknown, _, option = message.partition(": --")
        if unknown == "unrecognized arguments":
            option = option.split()[0].partition("=")[0]
            known = (name.lstrip("-") for name in self._option_string_actions)
            raise ConfigError(f"unknown option --{option}; {nearest(option, known)}")
        raise ConfigError(message)


def path(text: str) -> Path:
    try:
        return user_path(text)
    except ConfigError as error:  # argparse would replace the message
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1,000,000, not {text}")
    return number


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "train": train,
    "distill": distill,
    "store-teacher": store_outputs,
    "compare": compare_recipes,
    "advise": advise_run,
    "tune": tune_recipe,
    "probe": probe_backbone,
    "zeroshot": write_zero_shot,
    "evaluate": evaluate,
    "report": write_report,
    "inspect": inspect_examples,
    "bench": run_bench,
    "convert": convert_checkpoint,
    "export": export_student,
    "predict": predict_images,
    "toy": toy,
    "list": list_names,
}
EVERY_OPTION: dict[str, Callable[[Sequence[str]], str]] = {
    "train": partial(run_help, "train"),
    "distill": partial(run_help, "distill"),
    "store-teacher": partial(run_help, "store-teacher"),
    "advise": partial(run_help, "advise"),
    "evaluate": lambda _: evaluation_help(),
    "bench": _bench_help,
    "probe": _probe_help,
    "zeroshot": _zero_shot_help,
}
"""The text of --help-all. `disk_kd_command` answers --help with the common options."""
