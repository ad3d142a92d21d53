"""The commands that look at finished runs: report and inspect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from disk_kd.commands.parsing import Parser, TableConsole, add_import, count, path
from disk_kd.errors import ConfigError
from disk_kd.files import check_replaceable, write_text
from disk_kd.plugins import import_modules


def write_report(arguments: Sequence[str]) -> None:
    """Write an HTML report about one run, or about several with advice on which student to ship."""
    from disk_kd.report import report  # here, because matplotlib takes a second to import

    parser = Parser(prog="disk-kd report", description=write_report.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="Run directory, or folder of run directories."
    )
    parser.add_argument(
        "--output",
        type=path,
        help="File to write (default: report.html in the run directory, if there is one RUN).",
    )
    parser.add_argument("--device", default="auto", help="Device on which students and teachers run (default: auto).")
    add_import(parser)
    options = parser.parse_args(arguments)
    import_modules(options.imports)
    if options.output is not None:
        check_replaceable(options.output)
    print(f"Written: {report(options.runs, output=options.output, device=options.device)}")


def inspect_examples(arguments: Sequence[str]) -> None:
    """Write a CSV file of training examples, ranked by the help they get or by how doubtful their label is."""
    from disk_kd.report import RANKINGS, Outputs, Run, csv_text, faults_table, inspect_run  # as in `write_report`

    parser = Parser(prog="disk-kd inspect", description=inspect_examples.__doc__)
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
    add_import(parser)
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
        TableConsole().print(faults_table(found))
