"""Write the tables of docs/paper.md: the settings of the paper's recipes and of the release.

    python docs/settings.py

The released values are in docs/released.yaml. Ours come from the recipes themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from disk_kd.arguments import parse_run
from disk_kd.options import dotted
from disk_kd.recipe import list_recipes

DOCS = Path(__file__).parent
PAGE = DOCS / "paper.md"
BEGIN, END = "<!-- settings: made by docs/settings.py -->", "<!-- end of settings -->"


def tables() -> str:
    """A heading, the recipes and a table for each family of recipes with equal settings.

    Raises:
        ValueError: recipes of a family differ, a difference from the release has no reason, or a reason no difference.
    """
    content = yaml.safe_load((DOCS / "released.yaml").read_text(encoding="utf-8"))
    return "\n".join(_table(**family) for family in content["families"])


def _table(
    title: str,
    recipes: list[str],
    released: Mapping[str, Any] = {},
    why: Mapping[str, str] = {},
    trained_alike: Sequence[str] = (),
    note: str = "",
) -> str:
    names, others = _named(recipes), _named(trained_alike)
    lines = [f"#### {title}", "", ", ".join(f"`{name}`" for name in names)]
    alike = f"Same training and data settings: {', '.join(f'`{name}`' for name in others)}"
    lines += ["", alike] if others else []
    lines += ["", note] if note else []
    if released:
        lines += ["", "| option | released | here | why it differs |", "|---|---|---|---|"]
    for option, value in released.items():
        alike = others if option.partition(".")[0] in ("data", "student", "train") else []
        found = {_shown(_settings(name)[option]) for name in (*names, *alike)}
        if len(found) != 1:
            raise ValueError(f"{title}: {option} differs among its recipes: {sorted(found)}")
        ours, theirs = found.pop(), _shown(value)
        if (ours == theirs) == (option in why):
            raise ValueError(f"{title}: {option} is {theirs} in the release, {ours} here; reason: {why.get(option)}")
        lines.append(f"| `{option}` | {theirs} | {'same' if ours == theirs else ours} | {why.get(option, '')} |")
    if unknown := why.keys() - released.keys():
        raise ValueError(f"{title}: reasons for {sorted(unknown)}, of which no released value is known")
    return "\n".join([*lines, ""])


def _named(patterns: Sequence[str]) -> list[str]:
    """The recipes that match, in the order of the patterns."""
    found = [[name for name in list_recipes() if _matches(name, pattern)] for pattern in patterns]
    if not all(found):
        raise ValueError(f"no recipe matches one of {', '.join(patterns)}")
    return [name for names in found for name in names]


def _matches(name: str, pattern: str) -> bool:
    """As for paths: a star does not cross a slash."""
    parts = name.split("/"), pattern.split("/")
    return len(parts[0]) == len(parts[1]) and all(map(fnmatch, *parts))


@cache
def _settings(name: str) -> dict[str, Any]:
    """Options by dotted name, schedules and models' options as they stand."""
    tree = parse_run("distill", [name]).to_tree()
    whole = {f"{part}.{key}": value for part in ("method", "student") for key, value in tree[part].items()}
    return {**dotted(tree), **whole}


def _shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
