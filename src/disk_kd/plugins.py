"""What a user brings: methods, hints and models by my_module:name, and modules that register models with timm.

Modules are looked for where Python looks, and in the working directory. Only what the user names, on the command line
or in a recipe, is imported; what a file of weights names never is.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from disk_kd.errors import ConfigError, one_line

Base = TypeVar("Base")

IMPORT_HELP = "a module of yours to import first, such as one that registers models with timm; may be given again"
"""Of the option --import."""
TIMM_SOURCES = ("hf-hub:", "local-dir:")
"""What stands before a colon in names of timm's."""
_own: set[str] = set()
"""The modules that were imported because the user named them."""


def is_own(name: str) -> bool:
    """Whether a name is one of a user's own, my_module:name."""
    return ":" in name and not name.startswith(TIMM_SOURCES)


def find_class(name: str, known: Mapping[str, type[Base]], base: type[Base], what: str) -> type[Base]:
    """The class of that name.

    Args:
        name: one of `known`, or `my_package.my_module:MyClass`, which is imported.
        known: this package's own.
        base: what the class must derive from.
        what: it is, for messages.

    Raises:
        ConfigError: there is no such name, module or class, or the class is another kind of thing.
    """
    if name in known:
        return known[name]
    if not is_own(name):
        raise ConfigError(f"unknown {what} {name!r}; give one of {', '.join(known)}, or your own: my_module:MyClass")
    found = find_own(name, what)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"the {what} {name!r} must be a class that derives from {base.__name__}")
    return found


def find_own(name: str, what: str) -> Any:
    """What `my_package.my_module:name` stands for; the module is imported.

    Raises:
        ConfigError: there is no such module, importing it fails, or it has no such name.
    """
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(_imported(module_name), attribute)
    except (Exception, SystemExit) as error:  # a user's module can fail in any way at all
        raise ConfigError(f"no {what} {name!r} ({one_line(error)}); give a module and a name in it") from error


def import_modules(names: Iterable[str]) -> None:
    """Import modules for what they do then, such as registering models with timm.

    Args:
        names: of modules, or my_module:name, of which the module is imported.

    Raises:
        ConfigError: there is no such module, or importing it fails.
    """
    for name in names:
        try:
            _imported(name.partition(":")[0])
        except (Exception, SystemExit) as error:
            raise ConfigError(f"cannot import {name!r} ({one_line(error)}); give --import my_module") from error


def place_in_own(error: BaseException) -> str | None:
    """The last line of a user's module that an error came through, as FILE, line N; None: through none."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, line) for frame, line in frames if frame.f_globals.get("__name__") in _own]
    return "{}, line {}".format(*places[-1]) if places else None


def _imported(name: str) -> ModuleType:
    _own.add(name)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)
