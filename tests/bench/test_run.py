from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from disk_kd.bench import BenchSettings, bench
from disk_kd.bench.run import _compiles
from disk_kd.errors import ModelError, RunError


def test_one_call_measures_prints_and_writes_all(settings: BenchSettings, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "bench"
    console = Console(width=120, record=True, file=io.StringIO())
    bench(replace(settings, memory=False, repetitions=1, sweep_classes=[5], output=folder), console)
    assert {path.name for path in folder.iterdir()} == {
        "epochs.csv",
        "sweeps.csv",
        "bench.svg",
        "table.md",
        "profile.md",
        "environment.json",
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["settings"]["student"] == settings.student
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    epochs = list(csv.DictReader((folder / "epochs.csv").open()))
    assert {"bound", "ce", "disk_network", "timm", "plain_ce"} <= {line["case"] for line in epochs}
    assert {line["sweep"] for line in csv.DictReader((folder / "sweeps.csv").open())} == {
        "batch_size",
        "classes",
        "samples",
    }
    assert "DiSK stored / CE epoch" in console.export_text()


def test_bad_models_are_refused_before_anything_is_made(settings: BenchSettings, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no_such_model"):
        bench(replace(settings, student="no_such_model", output=tmp_path / "out"), Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(settings: BenchSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="no folder for the results"):
        bench(replace(settings, output=tmp_path / "file"), Console(quiet=True))


def test_without_a_compiler_steps_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", broken)
    console = Console(width=200, record=True, file=io.StringIO())
    assert not _compiles(torch.device("cpu"), console)
    assert "torch.compile does not work here (no C++ compiler)" in console.export_text()
