"""Which options a run's result hangs on: written once, in the fields that are the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, TypeVar

Value = TypeVar("Value")

_ENVIRONMENT = "environment"


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
