"""The command that lists names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import timm
from rich.markup import escape
from rich.table import Table

from disk_kd.commands.parsing import Parser, TableConsole
from disk_kd.data import DATASETS
from disk_kd.errors import ConfigError
from disk_kd.hints import HINTS
from disk_kd.models import create_model, multiply_adds
from disk_kd.recipe import list_recipes
from disk_kd.tasks import METHODS


def list_names(arguments: Sequence[str]) -> None:
    """List models, methods, hints, datasets or recipes."""
    parser = Parser(prog="disk-kd list", description=list_names.__doc__)
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
    TableConsole().print(table)


def _first_lines(classes: Mapping[str, type]) -> dict[str, str]:
    return {name: (kind.__doc__ or "").splitlines()[0] for name, kind in classes.items()}
