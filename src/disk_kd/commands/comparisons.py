"""The commands of many runs: demo, compare, tune and advise."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disk_kd import ranks
from disk_kd.advising import advise, page
from disk_kd.arguments import parse_run, read_arguments
from disk_kd.commands.parsing import (
    Parser,
    add_import,
    add_output_options,
    add_quiet,
    console_of,
    count,
    parse_with_options,
    path,
    print_paths,
)
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
from disk_kd.errors import ConfigError, RunError
from disk_kd.files import user_path
from disk_kd.plugins import import_modules
from disk_kd.training import (
    json_line,
)


def demo(arguments: Sequence[str]) -> None:
    """Compare five methods on digits with few and partly wrong labels; write a table and a report."""
    parser = Parser(prog="disk-kd demo", description=demo.__doc__)
    parser.add_argument(
        "--runs", type=path, default=Path("runs/demo"), help="Folder of run directories (default: runs/demo)."
    )
    parser.add_argument("--seeds", type=count, default=10, help="Number of seeds (default: 10).")
    parser.add_argument(
        "--jobs", type=count, default=ranks.cores(), help="Runs in parallel (default: one for each core)."
    )
    add_output_options(parser)
    options = parser.parse_args(arguments)
    console = console_of(options.quiet, options.log_json)
    console.print(demo_text(options.seeds, options.jobs), highlight=False, soft_wrap=True)
    recipes = [f"digits-demo/{name}" for name in DEMO]
    experiment = of_recipes(recipes, options.seeds, recipes[0])
    report = _reporter if options.report == "true" else None
    done = compare(experiment, runs=options.runs, name="report", jobs=options.jobs, console=console, report=report)
    if options.quiet:
        print_paths(*done.written)


def compare_recipes(arguments: Sequence[str]) -> None:
    """Run several recipes over several seeds and write a table; finished runs are reused."""
    parser = Parser(
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
    add_import(parser)
    add_output_options(parser)
    options, rest = parse_with_options(arguments, parser)
    own = read_arguments([*rest, *(f"--import={name}" for name in options.imports)]).tree
    if any(map(is_experiment, options.recipes)):
        experiments = _experiments(options)
    elif options.against:
        if options.baseline:
            raise ConfigError("--against adds the baseline; leave --baseline out")
        experiments = {"compare": with_control(options.recipes, options.seeds or 3, options.against, own)}
    else:
        experiments = {"compare": of_recipes(options.recipes, options.seeds or 3, options.baseline)}
    console = console_of(options.quiet, options.log_json)
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
        print_paths(*written)
    if failed:
        raise RunError("; ".join(failed))


def tune_recipe(arguments: Sequence[str]) -> None:
    """Search for the best method and settings in a given time, and measure what distillation gains with them."""
    from disk_kd.tuning import read_request, tune  # here, because matplotlib takes a second to import

    parser = Parser(
        prog="disk-kd tune",
        description=f"{tune_recipe.__doc__} Cross-entropy on the labels alone always takes part, with at least the"
        " effort of every other method. Validation chooses; the test split is read once, at the end. The same command"
        " resumes a search that was stopped or killed. Further options, such as --data.root DIR or --train.epochs N,"
        " apply to all runs (docs/tune.md).",
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
    add_import(parser)
    add_quiet(parser)
    options, rest = parse_with_options(arguments, parser)
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
    done = tune(request, console_of(options.quiet, options.log_json))
    if options.quiet:
        print_paths(*done.written)


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


def _reporter(rows: Mapping[str, Sequence[Path]], baseline: str | None, output: Path, differing: str) -> None:
    from disk_kd.report import report_comparison  # as in `write_report`

    report_comparison(rows, baseline, output, differing)
