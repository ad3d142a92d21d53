"""Classes by name: this package's own, or a user's by module:Class."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TypeVar

from disk_kd.errors import ConfigError

Base = TypeVar("Base")


def find_class(name: str, known: Mapping[str, type[Base]], base: type[Base], what: str) -> type[Base]:
    """The class of that name.

    Args:
        name: one of `known`, or `my_package.my_module:MyClass`, which is imported, also from the working directory.
        known: this package's own.
        base: what the class must derive from.
        what: it is, for messages.

    Raises:
        ConfigError: there is no such name, module or class, or the class is another kind of thing.
    """
    if name in known:
        return known[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ConfigError(f"unknown {what} {name!r}; give one of {', '.join(known)}, or your own: my_module:MyClass")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError, SystemExit) as error:
        raise ConfigError(f"no {what} {name!r} ({error}); give a module and a class of it") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"the {what} {name!r} must be a class that derives from {base.__name__}")
    return found
