"""Which options a run's result hangs on, written in the fields that are the options; their help and errors in words."""

from __future__ import annotations

import re
import types
from argparse import Action
from collections.abc import Iterable, Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

from disk_kd.errors import nearest

Value = TypeVar("Value")

_ENVIRONMENT = "environment"
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    dict: "mapping",
    list: "list",
    tuple: "list",
    Any: "anything",
    type(None): "null",
}


def environment(default: Value) -> Value:
    """A dataclass field that says where and how fast a run computes, or what it writes, but not what it computes."""
    return field(default=default, metadata={_ENVIRONMENT: True})


def environment_names(settings: type) -> frozenset[str]:
    """The names of the `environment` fields of a dataclass."""
    return frozenset(entry.name for entry in fields(settings) if _ENVIRONMENT in entry.metadata)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested options by dotted name, such as "train.lr"; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and bool(value)
        flat |= dotted(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help with types in words, such as "whole number or null"."""

    def _get_type_str(self, action: Action) -> str | None:
        kind = getattr(action, "_typehint", action.type)
        return super()._get_type_str(action) if kind is None else type_in_words(kind)


def type_in_words(kind: Any) -> str:
    """A type as a user may write values of it: "number", "auto or true or false", "list of whole number"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_in_words, inner))
    if origin in (list, tuple):
        return f"list of {type_in_words(inner[0])}"
    if origin is dict:
        return "mapping"
    if is_dataclass(kind):
        return f"mapping of {', '.join(entry.name for entry in fields(kind))}"
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind))


_ALIASES = {
    "epoch": "train.passes",
    "epochs": "train.passes",
    "learning_rate": "train.lr",
    "batch": "train.batch_size",
    "gpu": "train.device",
    "dataset": "data.name",
    "model": "student.name",
}
"""What other programs call an option."""
_EXAMPLES = {"list": "a list such as [1, 2]", "tuple": "a list such as [1, 2]", "dict": "a mapping such as {name: 1}"}
_PLAIN = (
    (r'option "([\w.-]+)": Expected a .*NestedArg\(key=\'(\w+)\'', "{0} has no part {1}; give --{0}=VALUE"),
    (r'option "([\w.-]+)": Expected a <class \'(?:\w+\.)*(\w+)\'>\. Got value: ?(.*)', "{0} must be {1}, not {2}"),
    (r'option "([\w.-]+)": Expected one of \[(.*?)\]\. Got value: ?(.*)', "{0} must be one of {1}, not {2}"),
    (r"argument (-[\w.-]+): expected (?:one|at least one) argument", "{0} needs a value: {0}=VALUE"),
    (r"argument (-[\w.-]+): ignored explicit argument '(.*)'", "{0} takes no value; leave ={1} out"),
    (
        r'option "([\w.-]+)": Unable to load config [\'"](.*?)[\'"]',
        "{0} must be a YAML file or a mapping, not {1}; each option of it is --{0}.NAME=VALUE",
    ),
    (r"argument ([\w.-]+): invalid (\w+) value: (.*)", "{0} must be {1}, not {2}"),
    (r"Key must be a string, got: (.*)\.", "the name of an option must be text, not {0}"),
    (r'option "([\w.-]+)": (expected .*)', "{0}: {1}"),
    (r"unrecognized arguments: (-\w\S*)", "options begin with two dashes: give -{0}"),
    (r"unrecognized arguments: ([^-].*)", "unexpected {0}; give options as --name=value"),
    (r"argument (-[\w-]+): (must be .*)", "{0} {1}"),
    (r"the following arguments are required: (.*)", "{0} is missing; --help shows what to give"),
)


def said_plainly(text: str) -> str:
    """What argparse or jsonargparse says of a wrong option, in words of this package."""
    for pattern, words in _PLAIN:
        if found := re.search(pattern, text):
            name, *others = (part or "''" for part in found.groups())
            return words.format(name, *(map(_plain_type, others[:-1])), *others[-1:])
    return text


def kinds_in_words(kinds: str) -> str:
    """Types as jsonargparse lists them, such as "['auto'], bool", in words."""
    names = {kind.__name__: words for kind, words in _WORDS.items() if isinstance(kind, type)}
    kinds = re.sub(r"\b(?:list|tuple)\[(\w+)[^\]]*\]", lambda found: f"list of {names.get(found[1], 'values')}", kinds)
    parts = re.sub(r"[\[\]']", "", kinds).replace(" or ", ", ").split(", ")
    return " or ".join(names.get(part, part) for part in parts)


def _plain_type(name: str) -> str:
    kind = {"count": int, "int": int, "float": float, "bool": bool, "str": str}.get(name)
    article = "" if kind in (bool, str) else "a "
    return _EXAMPLES.get(name) or (name if kind is None else article + _WORDS[kind])


def nearest_option(name: str, valid: Iterable[str]) -> str:
    """Names the options that a wrong one may stand for: those of the same last word, else the nearest.

    Returns a phrase such as ``"nearest: train.lr"``.
    """
    valid = list(valid)
    last = name.rpartition(".")[2].replace("-", "_").lower()
    same = [option for option in valid if option == _ALIASES.get(last) or option.rpartition(".")[2] == last]
    return f"nearest: {', '.join(same[:3])}" if same else nearest(name, valid)
