"""Logging of settings, metrics and summary to Weights & Biases or MLflow, if the user asks for it."""

from __future__ import annotations

import json
import logging
import netrc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from disk_kd import ranks
from disk_kd.errors import ConfigError, RunError, one_line
from disk_kd.files import read_yaml, write_text
from disk_kd.options import dotted
from disk_kd.training.stop import StoppedError, StopSignal

RUN_ID = "logger.json"
"""File in the run directory with the id of the logger's run, for resuming."""
_PROJECT = "disk-kd"


class _Backend(Protocol):
    where: str
    """Where a person finds the run."""
    run_id: str

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def summarise(self, values: Mapping[str, float]) -> None: ...

    def close(self, status: str) -> None: ...


class Tracker:
    """Sends numbers to a logger. If the logger fails, the run prints one warning and goes on without it."""

    def __init__(self, backend: _Backend, say: Callable[[str], None]) -> None:
        self._backend: _Backend | None = backend
        self._say = say

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step."""
        self._try(lambda backend: backend.log(values, step))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Send the numbers of a finished run's summary, by dotted name."""
        numbers = {f"summary/{name}": float(value) for name, value in dotted(summary).items() if _is_number(value)}
        self._try(lambda backend: backend.summarise(numbers))

    def close(self, status: str) -> None:
        """End the logger's run with status "FINISHED", "FAILED" or "KILLED". A killed run can be resumed."""
        self._try(lambda backend: backend.close(status))

    def _try(self, send: Callable[[_Backend], None]) -> None:
        if self._backend is None:
            return
        try:
            send(self._backend)
        except Exception as error:  # training goes on without its log
            self._backend = None
            self._say(f"warning: train.logger failed ({one_line(error)}); the run goes on without it")


def check_logger(name: str | None) -> None:
    """Raises ConfigError if the package of the logger is not installed."""
    if name is not None and find_spec(name) is None:
        raise ConfigError(
            f"train.logger {name} needs the package {name}, which is not installed; pip install 'disk-kd[{name}]'"
        )


@contextmanager
def tracked(
    name: str | None, folder: Path, config: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Tracker | None]:
    """Open a run in the logger, or resume the one that `folder` names. Only the main rank does.

    Args:
        name: "wandb" or "mlflow"; None: no logger.
        folder: run directory.
        config: settings of the run.
        say: gets a message with the location of the logged run.

    Yields:
        The tracker; None where there is none.

    Raises:
        RunError: the logger cannot start.
    """
    if name is None or not ranks.is_main():
        yield None
        return
    begun = read_yaml(folder / RUN_ID) if (folder / RUN_ID).exists() else {}
    run_id = begun.get(name) if isinstance(begun, dict) else None
    kinds: dict[str, Callable[..., _Backend]] = {"wandb": _Wandb, "mlflow": _Mlflow}
    try:
        backend = kinds[name](folder, config, run_id)
    except Exception as error:
        raise RunError(f"train.logger {name} cannot start ({one_line(error)}); fix that, or leave it out") from error
    write_text(folder / RUN_ID, json.dumps({name: backend.run_id}) + "\n")
    say(f"{name}: {backend.where}")
    tracker = Tracker(backend, say)
    try:
        yield tracker
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, StoppedError | StopSignal | KeyboardInterrupt) else "FAILED")
        raise
    tracker.close("FINISHED")


class _Wandb:
    """Online if the user is logged in, else offline, unless WANDB_MODE is set."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=str(folder),
            id=run_id,
            resume="allow" if mode == "online" else None,
            config=dict(config),
            dir=str(folder),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self.run_id = str(self._run.id)
        url = self._run.url if mode == "online" else None
        self.where = str(url or f"offline in {folder / 'wandb'}; `wandb sync` sends it")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def summarise(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


class _Mlflow:
    """At MLFLOW_TRACKING_URI, else in a database in the run directory."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric = Metric
        self.where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._client = MlflowClient(self.where)
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            self.run_id = str(self._client.create_run(experiment, run_name=str(folder)).info.run_id)
            params = [Param(name, str(value)[:6000]) for name, value in dotted(config).items()]
            for start in range(0, len(params), 100):  # as many as it takes at once
                self._client.log_batch(self.run_id, params=params[start : start + 100])
        else:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, [self._metric(name, value, now, step) for name, value in values.items()])

    def summarise(self, values: Mapping[str, float]) -> None:
        self.log(values, 0)

    def close(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)


def _logged_in() -> bool:
    """Whether `wandb login` was done or a key is in the environment."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host or "")
    except (OSError, netrc.NetrcParseError):
        known = None
    return bool(os.environ.get("WANDB_API_KEY") or known)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
