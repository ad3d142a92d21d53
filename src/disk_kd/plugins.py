"""A user's own code: methods, hints and models given as my_module:name, and modules that register models with timm.

Modules are searched on Python's path and in the working directory. Only modules that the user names on the command
line or in a recipe are imported. Modules that a file of weights names are not.
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

IMPORT_HELP = "Your own module to import first, for example one that registers models with timm. Repeatable."
"""Help of the option --import."""
TIMM_SOURCES = ("hf-hub:", "local-dir:")
"""Prefixes with a colon in timm's own model names."""
FOREIGN = ("transformers:", "onnx:", "torch.export:", "torchscript:")
"""Prefixes of models of other libraries and of exported files (`disk_kd.models.foreign`)."""
PROBED = "linear:"
"""Prefix of a backbone with a linear classifier on its pooled features (`disk_kd.models.linear`)."""
ZERO_SHOT = "zeroshot:"
"""Prefix of a zero-shot classifier that `disk-kd zeroshot` wrote (`disk_kd.models.zero_shot`)."""
_own: set[str] = set()
"""Modules that were imported because the user named them."""


def is_user_code(name: str) -> bool:
    """Whether a name refers to a user's own code, my_module:name."""
    name = backbone_of(name)
    return ":" in name and not name.startswith((*TIMM_SOURCES, *FOREIGN, ZERO_SHOT))


def backbone_of(name: str) -> str:
    """The backbone's name in linear:BACKBONE; any other name as it is."""
    return name.removeprefix(PROBED)


def is_on_hub(name: str) -> bool:
    """Whether timm fetches the settings of a model with this name from the hub."""
    return backbone_of(name).replace("_", "-").startswith("hf-hub:")


def is_foreign(name: str) -> bool:
    """Whether a name refers to a model of another library or to an exported file, such as onnx:FILE."""
    return name.startswith(FOREIGN)


def find_class(name: str, known: Mapping[str, type[Base]], base: type[Base], what: str) -> type[Base]:
    """The class with that name.

    Args:
        name: one of `known`, or `my_package.my_module:MyClass`, which is imported.
        known: the classes of this package, by name.
        base: the class that it must derive from.
        what: kind of class, for messages.

    Raises:
        ConfigError: there is no such name, module or class, or the class derives from something else.
    """
    if name in known:
        return known[name]
    if not is_user_code(name):
        raise ConfigError(f"unknown {what} {name!r}; give one of {', '.join(known)}, or your own: my_module:MyClass")
    found = find_user_code(name, what)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"the {what} {name!r} must be a class that derives from {base.__name__}")
    return found


def find_user_code(name: str, what: str) -> Any:
    """The object that `my_package.my_module:name` names. The module is imported.

    Raises:
        ConfigError: there is no such module, its import fails, or it has no such name.
    """
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(_imported(module_name), attribute)
    except (Exception, SystemExit) as error:  # a user's module can fail in any way at all
        raise ConfigError(f"no {what} {name!r} ({one_line(error)}); give a module and a name in it") from error


def import_modules(names: Iterable[str]) -> None:
    """Import modules for their side effects, such as registering models with timm.

    Args:
        names: module names. Of my_module:name the module is imported.

    Raises:
        ConfigError: there is no such module, or its import fails.
    """
    for name in names:
        try:
            _imported(name.partition(":")[0])
        except (Exception, SystemExit) as error:
            raise ConfigError(f"cannot import {name!r} ({one_line(error)}); give --import my_module") from error


def user_code_location(error: BaseException) -> str | None:
    """The last line of a user's module in the traceback of an error, as "FILE, line N"; None if there is none."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, line) for frame, line in frames if frame.f_globals.get("__name__") in _own]
    return "{}, line {}".format(*places[-1]) if places else None


def _imported(name: str) -> ModuleType:
    _own.add(name)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)
