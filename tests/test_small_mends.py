"""What has no test beside it: values on the command line, half precision, the network, what files of weights record."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import disk_kd
from disk_kd import cli
from disk_kd.bench.to_accuracy import process
from disk_kd.cli import main
from disk_kd.data.network import network
from disk_kd.errors import ConfigError, RunError
from disk_kd.files import save_tensors
from disk_kd.models import create_model
from disk_kd.models.about import read_about
from disk_kd.options import loaded
from disk_kd.tasks import DiSKTask
from disk_kd.trained import METADATA

LAUGHS = "{a: &a [x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 9)}]" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS + "}", r"the value '\{a: &a \[x.*' holds over 100,000 values, aliases written out; make it smaller"),
        ("{a: &a {b: *a}}", "line 1 of the value '.*' holds itself; write out what it means"),
        ("{lr: 1, lr: 2}", "key 'lr' occurs twice"),
        ("[" * 3000 + "]" * 3000, "it is nested too deeply; write it flatter"),
    ],
)
def test_a_value_of_the_command_line_is_checked_as_a_file_is(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=message):
        loaded(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["!!bool abc", "!!int x", "2020-13-45", "{a", "!mine 3", "*a"])
def test_what_is_no_yaml_is_text(text: str) -> None:
    assert loaded(text) == text


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@pytest.mark.parametrize(
    "options",
    [{"price_rate": 0.5, "price": 0.5}, {"helper": "teacher-map"}, {"variant": "paper", "price_rate": 0.5}],
)
def test_disk_in_half_precision(options: dict[str, object]) -> None:
    def task() -> DiSKTask:
        torch.manual_seed(0)
        models = [create_model("cifar_resnet10_xxxs", num_classes=4, in_chans=1) for _ in range(2)]
        task = DiSKTask(*models, **options)
        task.set_clock(4, 1)
        return task

    images, labels = images_and_labels()
    losses, prices = [], []
    for precision in (torch.float64, torch.float16):
        one = task().to(precision)
        one(images.to(precision), labels)["loss"].backward()
        loss = one(images.to(precision), labels)["loss"].detach()
        losses.append(float(loss))
        prices.append(float(one.price))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert prices[1] == pytest.approx(prices[0], rel=0.02)


def test_hugging_face_stays_offline_unless_downloads_are_allowed() -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE

    def fails() -> None:
        with network(allowed=False):
            assert constants.is_offline_mode()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert before == constants.HF_HUB_OFFLINE
    with network(allowed=True):
        assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["hfds/nobody", "hfids/nobody/none"])
def test_an_unknown_dataset_of_the_hub_is_refused_without_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    import socket

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the network was reached")

    monkeypatch.setattr(socket, "getaddrinfo", reached)
    monkeypatch.setattr(sys.modules["huggingface_hub.constants"], "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys.modules["datasets.config"], "HF_HUB_OFFLINE", False)
    assert main(["train", f"--data.name={name}", f"--output={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "OfflineModeIsEnabled); give data.download=true to fetch it" in error
    assert not (tmp_path / "run").exists()


def scans(root: Path) -> Path:
    """Grey images of 12 bits in class folders."""
    for split in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((8, 8), 300 * number + 2000 * label, dtype=np.uint16)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_a_file_of_weights_elsewhere_reads_images_of_16_bits_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.name=folder", f"--data.root={scans(tmp_path / 'scans')}", "--data.image_size=8"]
    sizes = ["--student.name=cifar_resnet10_xxxs", "--train.epochs=1", "--train.batch_size=4", "--quiet"]
    run = tmp_path / "run"
    options = [*data, *sizes, "--data.validation=0", "--data.grey_bits=12", "--data.stream=false"]
    assert main(["train", *options, f"--output={run}"]) == 0
    file = tmp_path / "elsewhere.safetensors"
    shutil.copy(run / "student.safetensors", file)
    expected = json.loads((run / "summary.json").read_text())["test"]["nll"]
    capsys.readouterr()
    assert main(["evaluate", str(file), *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nll"] == pytest.approx(expected, abs=1e-5)
    python = disk_kd.evaluate(file, data={"name": "folder", "root": str(tmp_path / "scans"), "image_size": 8})
    assert python["nll"] == pytest.approx(expected, abs=1e-5)
    assert read_about(file)["grey_bits"] == 12


def test_python_reads_images_as_a_file_of_weights_records(tmp_path: Path) -> None:
    """Its `crop_pct` counts, as on the command line; the digits are no files, so a recorded crop is refused."""
    model = create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    about = {"model": "cifar_resnet10_xxxs", "options": {}, "in_chans": 1, "mean": [0.5], "std": [0.5]}
    file = tmp_path / "w.safetensors"
    save_tensors(file, model.state_dict(), {METADATA: json.dumps(about | {"crop_pct": 0.5})})
    with pytest.raises(ConfigError, match=r"leave data\.crop_pct=1"):
        disk_kd.evaluate(file, data="digits")
    assert disk_kd.evaluate(file, data={"name": "digits", "crop_pct": 1.0})["samples"] == 539
    assert load_file(file).keys() == model.state_dict().keys()


@pytest.mark.parametrize("does", [time.sleep, lambda seconds: compute(seconds)], ids=["stalled", "busy"])
def test_a_contestant_that_does_nothing_any_more_is_told(
    does: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STALLED_S", 1.0)
    ours, theirs = get_context("fork").Pipe()
    contestant = object.__new__(process.ContestantProcess)
    contestant.name, contestant._connection = "kd_timm", ours
    contestant._process = get_context("fork").Process(target=_work, args=(theirs, does))  # type: ignore[assignment]
    contestant._process.start()
    theirs.close()
    try:
        if does is time.sleep:
            with pytest.raises(RunError, match="the process of kd_timm has done nothing for 1 s"):
                contestant.turn()
        else:
            assert contestant.turn().name == "kd_timm"
    finally:
        contestant.close(kill=True)
    assert contestant._process.exitcode is not None


def _work(connection, does: Callable[[float], None]) -> None:  # type: ignore[no-untyped-def]
    connection.recv()
    does(3.0)
    curve = {"name": "kd_timm", "title": "t", "is_peer": True, "epochs": 1, "prepare_s": 0.0, "points": []}
    connection.send(curve | {"test_top1": None})


def compute(seconds: float) -> None:
    """Compute for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000000 bytes"),
        MemoryError("Unable to allocate 9 GiB"),
    ],
)
def test_too_little_memory_of_the_machine_is_told(error: Exception) -> None:
    code, message = cli._exit_code_and_message(error)
    assert code == 2
    assert "allocate" in message
    assert message.endswith("lower train.batch_size or the image size, or raise train.accumulate")
