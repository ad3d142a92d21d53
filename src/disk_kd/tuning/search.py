"""The search over the settings of one candidate: Optuna proposes settings, and stops bad ones early.

The first lengths are whole runs with fewer epochs and a schedule of their own, not the beginnings of long runs. In
the middle of a long run the accuracy says more about the height of the learning rate than about the setting.

Source: successive halving in its asynchronous form, Li et al., "A System for Massively Parallel Hyperparameter Tuning",
MLSys 2020; Optuna's `SuccessiveHalvingPruner`. Settings are proposed by Optuna's `TPESampler`, Bergstra et al.,
"Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from disk_kd.errors import ConfigError
from disk_kd.tuning.candidate import Candidate
from disk_kd.tuning.journal import Result
from disk_kd.tuning.space import Setting

REDUCTION = 3
"""Each length is a third of the next, and about a third of the settings reaches the next."""
_SHORTEST = 5
_STARTUP = 6
"""Settings of a candidate before TPE proposes any; before, they are the known good ones and random ones."""


@dataclass(frozen=True)
class Job:
    """A run of the search.

    Attributes:
        candidate: whose run it is.
        number: number of the setting among those of the candidate.
        setting: values by dotted option.
        epochs: length of the run.
    """

    candidate: Candidate
    number: int
    setting: Setting
    epochs: int

    @property
    def key(self) -> str:
        """The name of the run in the journal, and of its run directory."""
        return f"{self.candidate.name}/{self.number:03d}-{self.epochs}epochs"


@dataclass
class Tried:
    """A setting and its results.

    Attributes:
        job: its last run.
        results: result of each of its runs, by number of epochs.
    """

    job: Job
    results: dict[int, Result] = field(default_factory=dict)

    def top1(self, epochs: int) -> float | None:
        """Validation accuracy of its run of that length; None if there is none."""
        result = self.results.get(epochs)
        return None if result is None else result.top1


def optuna() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        module: Any = importlib.import_module("optuna")
    except ImportError:
        raise ConfigError("disk-kd tune needs the package optuna: pip install 'disk-kd[tune]'") from None
    module.logging.set_verbosity(module.logging.ERROR)
    return module


def lengths(epochs: int) -> tuple[int, ...]:
    """The lengths of runs, up to the full one. The shortest has at least five epochs, or is the full one."""
    found = [epochs]
    while round(found[0] / REDUCTION) >= _SHORTEST:
        found.insert(0, round(found[0] / REDUCTION))
    return tuple(found)


class Search:
    """The search of one candidate. `run` yields the jobs to do, and gets their results.

    All draws come from a generator with a fixed seed, and results are told in the order of the settings. So the search
    depends only on the results, not on the order in which runs end.

    Args:
        candidate: what is searched over.
        epochs: length of a full run.
        width: number of settings that are tried at a time.
        seed: of the draws.
        may_begin: whether another setting may begin, from the epochs that are spent and those that the setting takes
            if it is not stopped.
    """

    def __init__(
        self,
        candidate: Candidate,
        epochs: int,
        *,
        width: int = 1,
        seed: int = 0,
        may_begin: Callable[[int, int], bool],
    ) -> None:
        self.candidate, self.lengths, self.width, self.may_begin = candidate, lengths(epochs), width, may_begin
        self.spent = 0
        self.tried: list[Tried] = []
        library = optuna()
        own_seed = zlib.crc32(f"{candidate.name} {seed}".encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls some of its samplers' options experimental
            sampler = library.samplers.TPESampler(n_startup_trials=_STARTUP, multivariate=True, seed=own_seed)
        pruner = library.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
        self._pruned = library.trial.TrialState.PRUNED
        self._study = library.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        for setting in candidate.first:
            self._study.enqueue_trial(setting)

    def run(self) -> Generator[list[Job], list[Result], None]:
        """Yields the jobs of a wave, and is sent their results, until the budget is spent."""
        while ladder := self._ladder():
            cost = sum(ladder)
            trials = [self._study.ask()]
            while len(trials) < self.width and self.may_begin(self.spent + len(trials) * cost, cost):
                trials.append(self._study.ask())
            yield from self._wave(trials, ladder)

    def _ladder(self) -> tuple[int, ...]:
        """The lengths of the next setting's runs; only the full one where the rest of the budget is short."""
        for ladder in (self.lengths, self.lengths[-1:]):
            if self.may_begin(self.spent, sum(ladder)):
                return ladder
        return ()

    def _wave(self, trials: list[Any], ladder: tuple[int, ...]) -> Generator[list[Job], list[Result], None]:
        """Some settings through the lengths, as far as they get."""
        settings = [{one.option: one.suggest(trial) for one in self.candidate.space} for trial in trials]
        tried = [
            Tried(Job(self.candidate, trial.number, setting, ladder[0]))
            for trial, setting in zip(trials, settings, strict=True)
        ]
        self.tried += tried
        going = list(zip(trials, tried, strict=True))
        for epochs in ladder:
            for _, one in going:
                one.job = Job(self.candidate, one.job.number, one.job.setting, epochs)
            results = yield [one.job for _, one in going]
            self.spent += epochs * len(going)
            for (_, one), result in zip(going, results, strict=True):
                one.results[epochs] = result
            going = [(trial, one) for trial, one in going if self._goes_on(trial, one, epochs)]
            if not going:
                return

    def _goes_on(self, trial: Any, tried: Tried, epochs: int) -> bool:
        """Tell Optuna the result of a run. Returns whether the setting reaches the next length."""
        top1 = tried.results[epochs].top1
        if top1 is None:
            self._study.tell(trial, state=self._pruned)
            return False
        trial.report(top1, REDUCTION ** self.lengths.index(epochs))
        if epochs == self.lengths[-1]:
            self._study.tell(trial, top1)
            return False
        if stopped := trial.should_prune():
            self._study.tell(trial, state=self._pruned)
        return not stopped

    @property
    def best(self) -> Tried | None:
        """The setting with the highest validation accuracy in a full run; None if there is none yet."""
        full = [one for one in self.tried if one.top1(self.lengths[-1]) is not None]
        return max(full, key=lambda one: one.top1(self.lengths[-1]) or 0.0, default=None)
