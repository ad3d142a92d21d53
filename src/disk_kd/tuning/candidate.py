"""The methods that compete in a search, each with its search space and the settings that it tries first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from disk_kd.config import RunConfig, find_hint, find_method
from disk_kd.errors import ConfigError, nearest
from disk_kd.files import read_yaml
from disk_kd.options import dotted, merged, nested
from disk_kd.tuning.space import Dimension, Setting

BASELINE = "ce"
"""The candidate that distillation is compared with: the labels alone."""
DEFAULT = (BASELINE, "kd", "dist")
"""The default candidates: what docs/choose.md says to try first."""
_PRIORS = Path(str(resources.files("disk_kd") / "tuning" / "priors.yaml"))
_TEMPERATURES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Source:
    """What the runs of a search have in common.

    Attributes:
        recipe: file of the recipe; None: no recipe.
        options: options over the recipe, as a recipe holds them.
        runs: folder of run directories, with the teacher store.
    """

    recipe: Path | None
    options: Mapping[str, Any]
    runs: Path

    def config(self, own: Mapping[str, Any]) -> RunConfig:
        """The configuration of a run with further options of its own.

        Raises:
            ConfigError: an option is wrong.
        """
        tree = merged(self.options, own)
        return RunConfig.of_recipe(self.recipe, tree, runs=self.runs, resume=True, shares_views=True)


@dataclass(frozen=True)
class Candidate:
    """A method, with its hint if it has one, and what is searched over.

    Attributes:
        name: "kd", or with a hint "ce+fitnet".
        source: what all runs have in common.
        space: the options that are searched over.
        first: settings that are tried first: the recipe's own, then those that were best in results/.
    """

    name: str
    source: Source
    space: tuple[Dimension, ...] = ()
    first: tuple[Setting, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether it learns from the labels alone."""
        return self.name == BASELINE

    def config(
        self, setting: Mapping[str, Any], *, epochs: int | None = None, given: Mapping[str, Any] = {}
    ) -> RunConfig:
        """The run of a setting.

        Args:
            setting: values by dotted option.
            epochs: length of the run; None: the recipe's.
            given: further options as a recipe holds them, such as `output`.

        Raises:
            ConfigError: an option is wrong.
        """
        method, _, hint = self.name.partition("+")
        own = merged({"method": {"name": method}, "hint": {"name": hint} if hint else None}, given)
        if not hint:
            setting = {name: value for name, value in setting.items() if not name.startswith("hint.")}
        config = self.source.config(merged(own, nested(dict(setting))))
        return config if epochs is None else shortened(config, epochs)


def candidates_of(
    source: Source, names: Sequence[str] | None, space: Sequence[Dimension] | None, where: str
) -> tuple[Candidate, ...]:
    """The candidates of a search. The baseline is always the first.

    Args:
        source: what all runs have in common.
        names: METHOD or METHOD+HINT; None: `DEFAULT` and the recipe's own method.
        space: what is searched over; None: the default space of each candidate.
        where: what messages call the space.

    Raises:
        ConfigError: an unknown method, hint or option, or no method but the baseline.
    """
    if names is None:
        own = source.config({})
        names = [*DEFAULT, own.method + (f"+{own.hint}" if own.hint else "")]
    names = list(dict.fromkeys((BASELINE, *names)))
    if len(names) < 2:
        raise ConfigError(f"the search needs a method to compare with {BASELINE}; give --methods kd dist")
    for name in names:
        method, plus, hint = name.partition("+")
        find_method(method)
        if plus:
            find_hint(hint)
    found = [_with_space(Candidate(name, source), space) for name in names]
    for dimension in space or ():
        if not any(dimension in candidate.space for candidate in found):
            known = {f"method.{option}" for one in found for option in one.config({}).method_options}
            raise ConfigError(
                f"unknown option {dimension.option} in the space of {where}: none of {', '.join(names)} has it;"
                f" {nearest(dimension.option, known)}"
            )
    return tuple(found)


def _with_space(candidate: Candidate, space: Sequence[Dimension] | None) -> Candidate:
    """The candidate with those dimensions that its method has, checked at their ends."""
    config = candidate.config({})
    chosen = default_space(config) if space is None else [one for one in space if _applies(one, config)]
    for dimension in chosen:
        for value in dimension.extremes:
            candidate.config({dimension.option: value})
    return replace(candidate, space=tuple(chosen), first=_first_settings(candidate, config, chosen))


def _applies(dimension: Dimension, config: RunConfig) -> bool:
    part, _, option = dimension.option.partition(".")
    known = {"method": config.method_options, "hint": config.hint_options}
    if part in known:
        return option.partition(".")[0] in known[part]
    return config.teacher is not None or part != "teacher"


def default_space(config: RunConfig) -> list[Dimension]:
    """What is searched over if nothing else is given: what changed a student most in results/.

    The learning rate and the weight decay of every method; the temperature, the weights of the terms and the budget, of
    methods that have them; label smoothing of a method without a teacher.
    """
    train, own = config.train, config.method_options
    space = [Dimension("train.lr", low=train.lr / 4, high=train.lr * 5, log=True)]
    decay = train.weight_decay
    space.append(
        Dimension("train.weight_decay", low=decay / 5, high=decay * 5, log=True)
        if decay
        else Dimension("train.weight_decay", choices=(0.0, 1e-4, 5e-4))
    )
    if _is_positive(own.get("temperature")):
        choices = tuple(sorted({*_TEMPERATURES, own["temperature"]}))
        space.append(Dimension("method.temperature", choices=choices))
    for name, factor in ((f"{config.method}_weight", 12.0), ("budget", 5.0)):
        if config.teacher is not None and _is_positive(own.get(name)):
            space.append(Dimension(f"method.{name}", low=own[name] / factor * 2, high=own[name] * factor, log=True))
    if config.teacher is not None and config.method != BASELINE and own.get("ce_weight"):
        space.append(Dimension("method.ce_weight", choices=(0.0, own["ce_weight"])))
    if config.teacher is None and own.get("label_smoothing") == 0:
        space.append(Dimension("method.label_smoothing", choices=(0.0, 0.1)))
    if config.hint is not None and _is_positive(config.hint_options.get("weight")):
        weight = config.hint_options["weight"]
        space.append(Dimension("hint.weight", low=weight / 10, high=weight * 10, log=True))
    return space


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _first_settings(candidate: Candidate, config: RunConfig, space: Sequence[Dimension]) -> tuple[Setting, ...]:
    """The recipe's own setting, and those of `priors.yaml`, each moved into the space."""
    own = dotted(config.to_tree())
    measured = read_yaml(_PRIORS).get(candidate.name, [])
    settings = [{}, *({name: _prior(value, own.get(name)) for name, value in one.items()} for one in measured)]
    found = []
    for setting in settings:
        nearest_values = {one.option: one.parameter(setting.get(one.option, own.get(one.option))) for one in space}
        moved = {name: value for name, value in nearest_values.items() if value is not None}  # others are drawn
        if moved not in found:
            found.append(moved)
    return tuple(found)


def _prior(value: Any, own: Any) -> Any:
    """A value of `priors.yaml`: x4 is four times the recipe's own."""
    return float(value[1:]) * own if isinstance(value, str) and value.startswith("x") else value


def shortened(config: RunConfig, epochs: int) -> RunConfig:
    """The same run in fewer epochs, with a whole schedule of its own; warm-ups and milestones keep their fractions.

    Args:
        config: of the full run.
        epochs: length of the shorter one.
    """
    train = config.train
    share = epochs / train.epochs
    return replace(
        config,
        method_options=_scaled(config.method_options, share),
        hint_options=_scaled(config.hint_options, share),
        train=replace(
            train,
            epochs=epochs,
            warmup_epochs=train.warmup_epochs * share,
            cooldown_epochs=train.cooldown_epochs * share,
            milestones=tuple(max(1, round(milestone * share)) for milestone in train.milestones),
        ),
    )


def _scaled(options: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Options of a method or hint with shorter warm-ups."""
    return {
        name: (value * share if isinstance(value, float) else round(value * share))
        if name.endswith("warmup_epochs") and isinstance(value, int | float)
        else value
        for name, value in options.items()
    }
