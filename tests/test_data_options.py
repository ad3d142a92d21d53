"""Options of the data that a run, its evaluation and a comparison agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disk_kd.arguments import parse_run
from disk_kd.build import load_data
from disk_kd.cli import main
from disk_kd.comparison.run import _same_images
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.data.settings import DataSettings
from disk_kd.errors import RunError
from disk_kd.models.about import read_about
from disk_kd.models.staged import CIFAR100_MEAN
from disk_kd.report.outputs import data_key
from disk_kd.report.reading import Run
from disk_kd.run import execute
from disk_kd.run_folder import DATA
from disk_kd.training import loop


def measured(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", *options]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


def test_a_limit_of_the_test_split(tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, "--train.epochs=1", "--data.limit_test=60", f"--output={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["limit_test"], summary["test"]["samples"]) == (60, 60)
    assert measured(run, capsys)["top1"] == pytest.approx(summary["test"]["top1"])
    whole = measured(run, capsys, "--data.limit_test=null")
    assert whole["samples"] == 539
    assert not _same_images({0: summary}, {0: summary | {"test": whole}}, "test")
    config = Run.read(run).config
    assert data_key(config) != data_key(replace(config, data=replace(config.data, limit_test=None)))


def test_grey_images_of_16_bits_by_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "scans" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 2000, (8, 8)) + 2000 * label
                Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "scans" / split / name / f"{number}.tif")
    data = ["--data.name=folder", f"--data.root={tmp_path / 'scans'}", "--data.image_size=8"]
    options = [*data, "--student.name=cifar_resnet10_xxxs", "--train.epochs=1", "--train.batch_size=8", "--quiet"]
    assert main(["train", *options, f"--output={tmp_path / 'run'}"]) == 2
    assert "to scale them give data.grey_bits, 16 or" in capsys.readouterr().err
    assert main(["train", *options, "--data.grey_bits=12", f"--output={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for stream in ("true", "false"):
        nll = measured(tmp_path / "run", capsys, f"--data.stream={stream}", "--data.workers=0")["nll"]
        assert nll == pytest.approx(summary["test"]["nll"], abs=1e-5)
    assert measured(tmp_path / "run", capsys, "--data.grey_bits=16")["nll"] != pytest.approx(nll, abs=1e-5)
    assert (
        main(["export", str(tmp_path / "run"), "--format=safetensors", f"--output={tmp_path / 'e.safetensors'}"]) == 0
    )


def test_a_run_of_version_0_1_goes_on_with_the_normalisation_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1 knew no dataset's normalisation and wrote no fingerprints of the images."""
    generator = np.random.default_rng(0)
    for name in ("n01", "n02"):
        for split in ("train", "val"):
            (tmp_path / "tiny" / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "tiny" / split / name / f"{number}.png")
    options = ["--data.name=tiny-imagenet", f"--data.root={tmp_path / 'tiny'}", "--student.name=cifar_resnet10_xxxs"]
    options += ["--train.epochs=3", "--train.batch_size=8", "--train.compile=false", "--train.log_every=1"]

    def config(name: str, *more: str) -> RunConfig:
        return parse_run("train", [*options, f"--output={tmp_path / name}", *more])

    def as_in_0_1(data: DataSettings) -> Dataset:
        return replace(load_data(data), normalisation=None)

    execute(config("whole"), load=as_in_0_1)
    now = loop.StopRequest.now
    monkeypatch.setattr(loop.StopRequest, "now", lambda self, steps: steps == 3)
    with pytest.raises(RunError):
        execute(config("broken"), load=as_in_0_1)
    (tmp_path / "broken" / DATA).unlink()
    for steps in (5, None):  # resumed twice
        monkeypatch.setattr(loop.StopRequest, "now", (lambda self, at: at == steps) if steps else now)  # noqa: B023
        try:
            execute(config("broken", "--resume"))
        except RunError:
            assert steps
    assert (tmp_path / "broken" / "student.safetensors").read_bytes() == (
        tmp_path / "whole" / "student.safetensors"
    ).read_bytes()
    assert read_about(tmp_path / "broken" / "student.safetensors")["mean"] == list(CIFAR100_MEAN)
