"""A run at Weights & Biases or MLflow: the real libraries, offline, where they are installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from disk_kd.cli import main
from disk_kd.training import StoppedError, Tracker, tracked, tracking


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_one_line_before_the_run(
    name: str, tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    assert main(["train", *tiny, f"--train.logger={name}", f"--output={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"disk-kd: train.logger {name} needs the package {name}, which is not installed;")
    assert said.endswith(f"; pip install 'disk-kd[{name}]'\n")
    assert list(tmp_path.iterdir()) == []


def test_no_logger_is_imported_unasked(tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail
    assert main(["train", *tiny, "--train.epochs=1", f"--output={tmp_path / 'run'}"]) == 0
    assert not (tmp_path / "run" / tracking.RUN_ID).exists()


class Backend:
    """Keeps what it is sent, and fails from `fails_at` on."""

    where, run_id, fails_at = "here", "7", 10**9

    def __init__(self, *begun: Any) -> None:
        self.begun, self.sent = begun, list[Any]()

    def log(self, values: Any, step: int) -> None:
        if step >= self.fails_at:
            raise OSError("no network")
        self.sent.append((step, values))

    def summarise(self, values: Any) -> None:
        self.sent.append(values)

    def close(self, status: str) -> None:
        self.sent.append(status)


def test_a_logger_that_fails_is_told_once_and_the_run_goes_on() -> None:
    backend, said = Backend(), list[str]()
    backend.fails_at = 2
    tracker = Tracker(backend, said.append)
    for step in (1, 2, 3):
        tracker.log({"train/loss": 0.5}, step)
    tracker.close("FINISHED")
    assert backend.sent == [(1, {"train/loss": 0.5})]
    assert said == ["warning: train.logger failed (no network); the run goes on without it"]


def test_the_end_is_told_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Backend]()
    monkeypatch.setattr(tracking, "_Wandb", lambda *begun: made.append(Backend(*begun)) or made[-1])
    for error in (None, StoppedError("asked"), KeyError("x")):
        try:
            with tracked("wandb", tmp_path, {}, lambda text: None):
                if error is not None:
                    raise error
        except (StoppedError, KeyError):
            pass
    assert [backend.sent for backend in made] == [["FINISHED"], ["KILLED"], ["FAILED"]]
    assert [backend.begun[2] for backend in made] == [None, "7", "7"], "the later ones go on with the first"


def test_other_ranks_send_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.ranks, "is_main", lambda: False)
    monkeypatch.setattr(tracking, "_Wandb", None)
    with tracked("wandb", tmp_path, {}, print) as tracker:
        assert tracker is None
    assert list(tmp_path.iterdir()) == []


def interrupted_and_resumed(run: Path, tiny: Sequence[str], logger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped before its second evaluation, and goes on."""
    from disk_kd.training import loop

    options = ["train", *tiny, f"--train.logger={logger}", f"--output={run}"]
    stop_at, now = 7, loop.StopRequest.now
    monkeypatch.setattr(loop.StopRequest, "now", lambda self, steps: steps == stop_at)
    assert main(options) == 75
    monkeypatch.setattr(loop.StopRequest, "now", now)
    assert main([*options, "--resume"]) == 0


def test_wandb_has_settings_metrics_and_summary(
    tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    interrupted_and_resumed(run, tiny, "wandb", monkeypatch)
    run_id = json.loads((run / tracking.RUN_ID).read_text())["wandb"]
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2, "the resumed run goes on in the same one"
    config, history, summary = read_wandb(files)
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"] == written["train"]
    logged = {line["step"]: line["loss"] for line in lines(run) if line["kind"] == "train"}
    assert {step: row["train/loss"] for step, row in history.items() if "train/loss" in row} == logged
    top1 = json.loads((run / "summary.json").read_text())["test"]["top1"]
    assert summary["summary/test.top1"] == top1


def read_wandb(files: Sequence[Path]) -> tuple[dict[str, Any], dict[int, dict[str, Any]], dict[str, Any]]:
    """Settings, metrics by step and summary of offline files."""
    from wandb.proto import wandb_internal_pb2 as proto

    def values(items: Any) -> dict[str, Any]:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    config, history, summary = dict[str, Any](), dict[int, dict[str, Any]](), dict[str, Any]()
    for path in files:
        for data in wandb_records(path.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            config |= values(record.run.config.update)
            summary |= values(record.summary.update)
            if record.history.item:
                row = values(record.history.item)
                history.setdefault(row["_step"], {}).update(row)
    return config, history, summary


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file, which is a log of LevelDB's format after 7 bytes of W&B's own.

    Blocks of 32 KiB hold chunks of a checksum (4 bytes), a length (2), a kind (1) and data; kinds 1 and 4 end a record.
    """
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_mlflow_has_settings_metrics_and_summary(
    tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    interrupted_and_resumed(run, tiny, "mlflow", monkeypatch)
    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("disk-kd")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert (found.data.params["train.lr"], found.data.params["student.name"]) == ("0.1", "cifar_resnet10_xxxs")
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert history == {line["step"]: line["loss"] for line in lines(run) if line["kind"] == "train"}
    top1 = json.loads((run / "summary.json").read_text())["test"]["top1"]
    assert found.data.metrics["summary/test.top1"] == top1
