"""Options: dataclass fields and constructor keywords, read from nested mappings and written back.

The mappings come from YAML. Each value is checked against the declared type of its field or keyword. The first value
that does not fit raises a `ConfigError` with the option's name, the expected type and the value.
"""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from disk_kd.errors import ConfigError, nearest, shown
from disk_kd.files import parse_yaml, user_path

Value = TypeVar("Value")

_ENVIRONMENT = "environment"
_NULL = ("null", "None")
_ALIASES = {
    "epoch": "train.epochs",
    "passes": "train.epochs",
    "learning_rate": "train.lr",
    "batch": "train.batch_size",
    "gpu": "train.device",
    "dataset": "data.name",
    "model": "student.name",
}
"""Names of options in other programs."""
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
    Any: "a value",
}


def environment(default: Value) -> Value:
    """A dataclass field that does not change the result of a run: where and how fast it computes, or what it logs."""
    return field(default=default, metadata={_ENVIRONMENT: True})


def environment_names(settings: type) -> frozenset[str]:
    """The names of the `environment` fields of a dataclass."""
    return frozenset(entry.name for entry in fields(settings) if _ENVIRONMENT in entry.metadata)


class Raw(str):
    """The text of a value as typed on the command line. The type of its option determines how it is read."""


@dataclass(frozen=True)
class Option:
    """A dataclass field or a constructor keyword.

    Attributes:
        name: name of the field or keyword.
        kind: its declared type; `Any` if there is none.
        default: its default; `dataclasses.MISSING` if it is required.
        help: its description in the docstring.
    """

    name: str
    kind: Any
    default: Any
    help: str

    @property
    def nested(self) -> type | None:
        """The dataclass that the option can hold; None if it cannot hold one."""
        return next((kind for kind in _alternatives(self.kind) if isinstance(kind, type) and is_dataclass(kind)), None)

    @property
    def takes(self) -> str:
        """The type of its value, in words."""
        return described(self.kind)


def options_of(owner: Any, skip: frozenset[str] = frozenset()) -> dict[str, Option]:
    """The options of a dataclass or of a class's constructor, by name and in order.

    If a constructor takes **keywords, the options of its next base class are included.

    Args:
        owner: the dataclass or class.
        skip: keywords that are not options.
    """
    return _options(owner, skip)


@cache
def _options(owner: Any, skip: frozenset[str]) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for kind in inspect.getmro(owner) if isinstance(owner, type) else (owner,):
        constructor = vars(kind).get("__init__") if isinstance(kind, type) else kind
        if constructor is None or kind is object:
            continue
        declared = get_type_hints(kind if is_dataclass(kind) else constructor)
        parameters = list(inspect.signature(constructor).parameters.values())[isinstance(kind, type) :]
        descriptions = _descriptions(owner)
        for one in parameters:
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.name in skip or one.name in found:
                continue
            default = MISSING if one.default is one.empty else one.default
            if is_dataclass(kind):
                default = _field_default(kind, one.name)
            found[one.name] = Option(one.name, declared.get(one.name, Any), default, descriptions.get(one.name, ""))
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found


def read(settings: type[Value], tree: Mapping[str, Any], name: str = "") -> Value:
    """A dataclass instance from a mapping of its options.

    Args:
        settings: the dataclass.
        tree: values by option. Nested dataclasses are mappings or instances.
        name: dotted name of the mapping, for messages.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type or out of range.
    """
    return settings(**read_options(settings, tree, name))


def read_options(
    owner: Callable[..., Any], tree: Any, name: str = "", skip: Collection[str] = frozenset()
) -> dict[str, Any]:
    """The checked values of the options of a dataclass or constructor that a mapping sets.

    Args:
        owner: the dataclass or class.
        tree: values by option.
        name: dotted name of the mapping, for messages.
        skip: keywords that are not options.

    Raises:
        ConfigError: an unknown or missing option, or a value of the wrong type.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{name} must be a mapping of options, not {_value_text(tree)}")
    known = options_of(owner, frozenset(skip))
    prefix = f"{name}." if name else ""
    for key in tree:
        if not isinstance(key, str):
            raise ConfigError(f"the name of an option must be text, not {key!r}")
        if key not in known:
            option = shown(f"{prefix}{key}")
            raise ConfigError(f"unknown option {option}; {nearest_option(option, [prefix + each for each in known])}")
    for key, needed in known.items():
        if needed.default is MISSING and key not in tree:
            raise ConfigError(f"{prefix}{key} is missing: give {needed.takes}")
    return {key: read_value(known[key].kind, value, prefix + key) for key, value in tree.items()}


def read_value(kind: Any, value: Any, name: str) -> Any:
    """The checked value of one option.

    Args:
        kind: declared type of the option.
        value: from YAML, from Python, or `Raw`.
        name: dotted name of the option, for messages.

    Raises:
        ConfigError: the value has another type, is NaN, or is an integer of over 31 bits (except seeds).
    """
    alternatives = _alternatives(kind)
    if isinstance(value, Raw):
        value = _typed(alternatives, value, name)
    settings = next((each for each in alternatives if isinstance(each, type) and is_dataclass(each)), None)
    if settings is not None:
        if isinstance(value, settings):
            return value
        if isinstance(value, Mapping):
            return read(settings, value, name)
        alternatives = tuple(each for each in alternatives if each is not settings)
    if not alternatives or not _fits(alternatives, value):
        default = "; leave it out for the default" if value is None else ""
        raise ConfigError(f"{name} must be {described(kind)}, not {_value_text(value)}{default}")
    value = _validated(alternatives, value)
    if isinstance(value, Path):
        return user_path(value)
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, float) and math.isnan(number):
            raise ConfigError(f"{name} must be a number, not {value}")
        if type(number) is int and abs(number) >= 2**31 and not name.endswith("seed"):
            raise ConfigError(f"{name} is too large: {value}; give a number below 2^31")
    return value


def described(kind: Any) -> str:
    """A type in words, for help and messages."""
    words = [word for each in _alternatives(kind) for word in (("true", "false") if each is bool else (_word(each),))]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def plain(value: Any) -> Any:
    """A value in YAML's types: mappings, lists, text, numbers, true, false and null."""
    if isinstance(value, Raw):
        return loaded(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def loaded(text: str) -> Any:
    """The YAML value of a text; the text itself if it is not YAML. 1e-3 is read as a number.

    Raises:
        ConfigError: as for `disk_kd.files.parse_yaml`.
    """
    try:
        value = parse_yaml(text, f"the value {shown(text[:40])!r}")
    except ConfigError:
        raise
    except Exception:  # PyYAML passes on Python's errors for invalid dates, numbers and booleans
        return str(text)
    return _number(value) if isinstance(value, str) else value


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested options by dotted name, such as "train.lr". An empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and bool(value)
        flat |= dotted(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `dotted`. Later names override or extend earlier ones.

    Raises:
        ConfigError: a name has an empty part.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parts, last = name.split(".")
        if not all((*parts, last)):
            raise ConfigError(f"an option has no name between its dots: {shown(name)!r}")
        inner = tree
        for part in parts:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        inner[last] = merged(inner[last], value) if _both_mappings(inner.get(last), value) else value
    return tree


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of options merged; values of `above` override values of `below`."""
    both = {key for key in above if _both_mappings(below.get(key), above[key])}
    return {**below, **{key: merged(below[key], value) if key in both else value for key, value in above.items()}}


def nearest_option(name: str, valid: Iterable[str]) -> str:
    """The options that a wrong name may mean: those with the same last word, else the nearest.

    Returns a phrase such as ``"nearest: train.lr"``.
    """
    valid = list(valid)
    last = name.rpartition(".")[2].lower()
    same = [option for option in valid if option == _ALIASES.get(last) or option.rpartition(".")[2] == last]
    return f"nearest: {', '.join(same[:3])}" if same else nearest(name, valid)


def _both_mappings(one: Any, other: Any) -> bool:
    return isinstance(one, Mapping) and isinstance(other, Mapping)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, flattened; a single type otherwise."""
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(each for one in get_args(kind) for each in _alternatives(one))
    return (kind,)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind))) if len(get_args(kind)) > 1 else str(get_args(kind)[0])
    origin = get_origin(kind) or kind
    if origin in (list, tuple):
        inner = next(iter(get_args(kind)), Any)
        return f"a list of {_word(inner).removeprefix('a ')}s" if inner in (int, float) else "a list"
    if origin is dict or (isinstance(kind, type) and is_dataclass(kind)):
        return "a mapping" if origin is dict else f"a mapping of {', '.join(options_of(kind))}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _value_text(value: Any) -> str:
    """A wrong value as text of at most 80 characters."""
    text = str(value) if isinstance(value, Raw | str) else json.dumps(plain(value), default=str)
    text = shown(text if len(text) <= 80 else text[:79] + "…")
    return repr(text) if isinstance(value, str) else text


def _typed(alternatives: tuple[Any, ...], text: Raw, name: str) -> Any:
    """A typed value, read as the first of these that fits: null, its YAML value, the text itself."""
    if type(None) in alternatives and text in _NULL:
        return None
    textual = str in alternatives or Path in alternatives
    others = tuple(each for each in alternatives if each not in (str, Path, type(None)))
    if textual and not others:
        return str(text)
    value = loaded(text) if text else ""
    settings = any(isinstance(each, type) and is_dataclass(each) for each in others)
    if textual and not (settings and isinstance(value, Mapping)) and not _fits(others, value):
        return str(text)
    return value


def _fits(alternatives: tuple[Any, ...], value: Any) -> bool:
    try:
        _validated(alternatives, value)
    except (ValidationError, TypeError, ValueError):
        return False
    return True


def _validated(alternatives: tuple[Any, ...], value: Any) -> Any:
    """The value after a strict check: 1 is a number but not true, "1" is text. Lists are accepted for tuples."""
    if isinstance(value, str) and str not in alternatives and Path not in alternatives:
        value = _number(value)
    return _adapter(alternatives).validate_json(json.dumps(plain(value)), strict=True)


def _number(text: str) -> str | float:
    """Numbers such as 1e-3, which YAML 1.1 reads as text, as float; other text unchanged."""
    try:
        return float(text) if text[:1] in "+-.0123456789" else text
    except ValueError:
        return text


@cache
def _adapter(alternatives: tuple[Any, ...]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(reduce(or_, alternatives))
    except PydanticSchemaGenerationError:  # a type without a YAML form; its class checks the value
        return TypeAdapter(Any)


def _field_default(settings: type, name: str) -> Any:
    entry = next(entry for entry in fields(settings) if entry.name == name)
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


@cache
def _descriptions(owner: Any) -> dict[str, str]:
    """The descriptions of options in docstrings. A class's own docstring overrides those of its base classes."""
    found: dict[str, str] = {}
    for kind in reversed(inspect.getmro(owner) if isinstance(owner, type) else (owner,)):
        for documented in (kind, vars(kind).get("__init__")) if isinstance(kind, type) else (kind,):
            text = getattr(documented, "__doc__", None)
            if text and kind is not object:
                found |= {
                    one.arg_name: " ".join((one.description or "").split()) for one in parse_docstring(text).params
                }
    return found
