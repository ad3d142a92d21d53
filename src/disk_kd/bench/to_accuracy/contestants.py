"""The contestants: name, title, and their changes to the options of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from disk_kd.arguments import parse_run
from disk_kd.bench.peers import torchdistill_installed
from disk_kd.config import RunConfig
from disk_kd.errors import ConfigError, nearest

ONLINE = ("--teacher.store=false", "--data.views=null")
STORED = ("--teacher.store=true",)


@dataclass(frozen=True)
class Contestant:
    """One way to train the student.

    Attributes:
        title: title for tables.
        kind: the tool whose training loop it uses.
        options: options that override those of the run.
    """

    title: str
    kind: Literal["plain", "timm", "torchdistill", "ours"]
    options: tuple[str, ...]

    @property
    def is_peer(self) -> bool:
        """Whether it uses the loop of another tool."""
        return self.kind != "ours"


CONTESTANTS: dict[str, Contestant] = {
    "plain_ce": Contestant("plain PyTorch, CE", "plain", ("--method=ce",)),
    "timm_kd": Contestant("timm LogitDistillationTask, KD", "timm", ("--method=kd",)),
    "torchdistill_kd": Contestant("torchdistill KDLoss, KD", "torchdistill", ("--method=kd",)),
    "ce": Contestant("disk-kd, CE", "ours", ("--method=ce",)),
    "kd_online": Contestant("disk-kd, KD, online teacher", "ours", ("--method=kd", *ONLINE)),
    "kd_stored": Contestant("disk-kd, KD, stored teacher", "ours", ("--method=kd", *STORED)),
    "disk_online": Contestant("disk-kd, DiSK, online teacher", "ours", ("--method=disk", *ONLINE)),
    "disk_stored": Contestant("disk-kd, DiSK, stored teacher", "ours", ("--method=disk", *STORED)),
}
"""All contestants by name, in the order of their turns."""

DEFAULT = tuple(name for name in CONTESTANTS if name != "ce")


def configs(
    names: Sequence[str], options: Sequence[str], own: Sequence[tuple[str, str]], folder: Path
) -> dict[str, RunConfig]:
    """The run of each contestant, with the same models, data, schedule and seed.

    Args:
        names: keys of `CONTESTANTS`.
        options: [RECIPE] and options of `disk-kd distill` as --OPTION=VALUE, for all contestants. Options of the
            teacher apply to contestants with a teacher.
        own: (name, OPTION=VALUE) for a single contestant.
        folder: folder for the files of each contestant, such as stored outputs. None reads another's.

    Raises:
        ConfigError: a name is unknown or repeated, torchdistill is requested but not installed, no contestant is left,
            or an option is wrong.
    """
    for name in [*names, *(name for name, _ in own)]:
        if name not in CONTESTANTS:
            raise ConfigError(f"unknown contestant {name!r}; {nearest(name, CONTESTANTS)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"name at least one contestant, and none twice, not {list(names)}")
    if "torchdistill_kd" in names and not torchdistill_installed():
        raise ConfigError("torchdistill is not installed; pip install torchdistill, or leave torchdistill_kd out")
    made = {}
    for name in (name for name in CONTESTANTS if name in names):
        mine = [f"--{option.removeprefix('--')}" for whose, option in own if whose == name]
        config = parse_run("distill", [*_shared(options, name), *CONTESTANTS[name].options, *mine])
        _check(name, config)
        made[name] = replace(config, runs=folder / name)
    return made


def _shared(options: Sequence[str], name: str) -> list[str]:
    """The common options that apply to this contestant: cross-entropy has no teacher."""
    taught = "--method=ce" not in CONTESTANTS[name].options
    return [option for option in options if taught or not option.startswith("--teacher.")]


def _check(name: str, config: RunConfig) -> None:
    """Raise an error for options that the other tools' loops do not support.

    Raises:
        ConfigError: there is such an option.
    """
    if config.data.validation == 0:
        raise ConfigError("the time to an accuracy needs a validation split; give --data.validation 0.1")
    if config.hint is not None:
        raise ConfigError(f"the contestants have no feature method; leave out --hint {config.hint}")
    for option, value, plain in (
        ("data.mix", config.data.mix.on, False),
        ("data.timm.enabled", config.data.timm.enabled, False),
        ("data.augment.lighting", config.data.augment.lighting, 0.0),
        ("train.ema_decay", config.train.ema_decay, None),
        ("train.accumulate", config.train.accumulate, 1),
        ("train.clip_grad", config.train.clip_grad, None),
    ):
        if CONTESTANTS[name].is_peer and value != plain:
            raise ConfigError(f"{CONTESTANTS[name].title} has no {option}; leave it out, or {name}")


def shown_options(config: RunConfig) -> Mapping[str, object]:
    """The options of a contestant's training for the results page."""
    train = config.train
    return {
        "method": config.method,
        "method_options": {name: str(value) for name, value in config.method_options.items()},
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "optimizer": train.optimizer,
        "lr": train.lr,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "schedule": train.schedule,
        "warmup": train.warmup_epochs,
        "seed": train.seed,
        "views": config.data.views,
        "validation": config.data.validation,
        "limit_train": config.data.limit_train,
    }
