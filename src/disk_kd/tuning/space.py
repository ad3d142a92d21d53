"""The search space: which options are tried, and in which range.

    train.lr: {low: 0.05, high: 1.0, log: true}     a range
    method.temperature: [1.0, 2.0, 4.0]             a list of values, of any kind

An option `method.NAME` counts for the methods that have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disk_kd.errors import ConfigError, nearest
from disk_kd.options import plain

_RANGE = {"low", "high", "log"}
_TUNABLE = ("train", "method", "hint", "teacher", "data.augment", "data.mix", "data.timm", "data.views")
_IN_PARTS = ("train", "method", "hint")
"""Sections whose options are searched over one by one: a whole section could set what a run gets from the search."""
_SET_BY_TUNE = ("train.epochs", "train.seed", "train.device", "method.name", "hint.name")

Setting = dict[str, Any]
"""Values by dotted option."""


@dataclass(frozen=True)
class Dimension:
    """An option that is searched over.

    Args:
        option: dotted name.
        choices: the values, if they are listed.
        low, high: the range, if it is one; both ends are included.
        log: whether the range is searched in the logarithm.
        whole: whether the range holds whole numbers alone.
    """

    option: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values to check: all choices, or both ends of the range."""
        return self.choices or (self._number(self.low), self._number(self.high))

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial. Choices go by their text, since Optuna stores no lists or mappings."""
        if self.choices:
            texts = [text_of(value) for value in self.choices]
            return self.choices[texts.index(trial.suggest_categorical(self.option, texts))]
        if self.whole:
            return trial.suggest_int(self.option, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.option, self.low, self.high, log=self.log)

    def parameter(self, value: Any) -> Any:
        """The nearest value in the dimension, as Optuna stores it; None for a range without a number."""
        if not self.choices:
            return self._number(min(max(value, self.low), self.high)) if _is_number(value) else None
        if value in self.choices:
            return text_of(value)
        numbers = [choice for choice in self.choices if _is_number(choice)]
        if _is_number(value) and numbers:
            return text_of(min(numbers, key=lambda choice: abs(choice - value)))
        return text_of(self.choices[0])

    def _number(self, value: float) -> float:
        return int(value) if self.whole else float(value)


def text_of(value: Any) -> str:
    """A value in one line, as a reader knows it."""
    return value if isinstance(value, str) else json.dumps(plain(value), sort_keys=True, default=str)


def setting_text(setting: Mapping[str, Any]) -> str:
    """A setting in one line; numbers with three significant digits."""
    shown = [f"{value:.3g}" if isinstance(value, float) else text_of(value) for value in setting.values()]
    short = [name.rpartition(".")[2] for name in setting]
    names = [name if short.count(last) > 1 else last for name, last in zip(setting, short, strict=True)]
    return ", ".join(f"{name}={value}" for name, value in zip(names, shown, strict=True)) or "as the recipe"


def read_space(tree: Any, where: str) -> tuple[Dimension, ...]:
    """The search space of a mapping from dotted options to ranges or lists.

    Args:
        tree: from YAML.
        where: what messages call it.

    Raises:
        ConfigError: it is no such mapping, it is empty, or an option cannot be searched over.
    """
    if not isinstance(tree, Mapping) or not tree:
        raise ConfigError(f"the space of {where} must give a range or a list of values for at least one option")
    return tuple(_dimension(str(option), about, where) for option, about in tree.items())


def _dimension(option: str, about: Any, where: str) -> Dimension:
    if option in _SET_BY_TUNE:
        raise ConfigError(f"{option} in the space of {where} is set by disk-kd tune for each run; leave it out")
    if not any(option == part or option.startswith(f"{part}.") for part in _TUNABLE):
        raise ConfigError(
            f"{option} in the space of {where} cannot be searched over, since its runs could not be compared; give"
            f" options of {', '.join(_TUNABLE)}"
        )
    if option in _IN_PARTS:
        raise ConfigError(
            f"{option} in the space of {where} is a whole section; give single options such as {option}.NAME"
        )
    if isinstance(about, Mapping):
        return _range(option, about, where)
    if not isinstance(about, list) or not about:
        raise ConfigError(f"{option} in the space of {where} must be a list of values or {{low, high}}, not {about!r}")
    values = tuple(about)
    if option == "teacher" and None in values:
        raise ConfigError(f"teacher in the space of {where} must list teachers; ce learns without one in every search")
    if len({text_of(value) for value in values}) < len(values):
        raise ConfigError(f"{option} in the space of {where} lists a value twice: {about!r}")
    return Dimension(option, choices=values)


def _range(option: str, about: Mapping[Any, Any], where: str) -> Dimension:
    for key in about:
        if key not in _RANGE:
            raise ConfigError(f"unknown key {key!r} of {option} in the space of {where}; {nearest(str(key), _RANGE)}")
    low: Any = about.get("low")
    high: Any = about.get("high")
    log = about.get("log", False)
    if isinstance(log, bool) and _is_number(low) and _is_number(high) and low < high and (low > 0 or not log):
        whole = isinstance(low, int) and isinstance(high, int)
        return Dimension(option, low=float(low), high=float(high), log=log, whole=whole)
    raise ConfigError(
        f"{option} in the space of {where} needs numbers low < high (above 0 with log: true), not {plain(about)}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
