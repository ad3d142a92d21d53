"""Training with fake quantisation: what is trained, chosen, resumed and exported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.data.settings import DataSettings
from disk_kd.errors import CheckpointError
from disk_kd.export import ONNX_PACKAGES, latency, open_onnx, read_student
from disk_kd.fake_int8 import FakeInt8, find_layout, int8_copy
from disk_kd.training import Display

MODEL = "cifar_resnet10_xxxs"
CASES = {
    "disk and EMA": ["--method=disk", "--train.ema_decay=0.9"],
    "hint": ["--method=kd", "--hint=fitnet"],
}
FEW = 1
"""Images of 300 whose class may differ between the fake-quantised student and the file, by rounding alone."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> list[str]:
    """A command that distils on digits with half of the epochs quantised, without method and output."""
    teacher = tmp_path_factory.mktemp("teacher")
    longer = [*tiny, "--train.epochs=6"]
    assert main(["train", *longer, f"--output={teacher}"]) == 0
    quantised = ["--train.quantise=int8", "--train.quantise_epochs=3"]
    return ["distill", *longer, *quantised, f"--teacher.name={MODEL}", f"--teacher.weights={teacher}"]


def test_split() -> tuple[Tensor, Tensor]:
    split = load_dataset(DataSettings(limit_train=120)).test
    assert split is not None
    return split.images, split.targets


test_split.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.skipif(not all(map(find_spec, ONNX_PACKAGES)), reason="needs onnx")
@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_was_trained(
    case: str, command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "BUDGET_S", 0.01)
    run = tmp_path / "run"
    assert main([*command, *CASES[case], f"--output={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["selected_epoch"] > 3, "a float checkpoint is not chosen"
    plain = timm.create_model(MODEL, num_classes=10, in_chans=1, checkpoint_path=run / "student.safetensors").eval()

    certified = "true" if "ema" in str(CASES[case]) else "false"  # once, because a certificate takes time
    export = ["export", str(run), "--format=onnx", "--quantise=int8", "--max-drop=100", f"--certify={certified}"]
    assert main(export) == 0
    file = run / "export" / f"{MODEL}-int8.onnx"
    if certified == "true":
        certificate = json.loads(file.with_name(f"{file.name}.certificate.json").read_text())
        assert certificate["quantisation"]["different_from_training"] <= FEW
        assert certificate["splits"]["test"]["top1"] == pytest.approx(summary["test"]["top1"], abs=100 * FEW / 300)

    student = read_student(run)
    images, _ = test_split()
    images = (images.float() / 255 - student.about["mean"][0]) / student.about["std"][0]
    fake = FakeInt8(find_layout(plain, student.input_size))
    fake.load_record(student.about["int8"])
    fake.attach(plain)
    with torch.no_grad():
        floats = plain(images)
        fake.active = True
        trained = plain(images)
    written = open_onnx(file)(images)
    assert (trained.argmax(1) != written.argmax(1)).sum() <= FEW
    assert (trained - written).abs().max() < (trained - floats).abs().max() / 2, "nearer to the training than to float"


def test_resumed_in_a_quantised_epoch_it_ends_the_same(
    command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [*command, *CASES["disk and EMA"], "--train.checkpoint_every_s=0"]
    assert main([*command, f"--output={whole}"]) == 0
    steps = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    for stop_at in (steps // 2, steps // 2 + 1, steps - 1):

        def stop(display: Display, done: int, stop_at: int = stop_at) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        resumed = ["--resume"] if broken.exists() else []
        with monkeypatch.context() as patch:
            patch.setattr(Display, "step", stop)
            assert main([*command, f"--output={broken}", *resumed]) == 130
    assert main([*command, f"--output={broken}", "--resume"]) == 0
    for name in ("student.safetensors", "best/student.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def attached(name: str, shape: tuple[int, int, int], **options: int) -> tuple[Any, FakeInt8, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options)
    images = torch.randn(32, *shape)
    with torch.no_grad():
        model(images)
    fake = FakeInt8(find_layout(model, shape))
    fake.attach(model)
    return model, fake, images


@pytest.mark.parametrize("name", ["cifar_mobilenetv2", "cifar_wrn_16_2", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_rounding_keeps_the_model_and_freezes_its_statistics(name: str) -> None:
    options = {"img_size": 32, "patch_size": 8, "depth": 2} if name.startswith("vit") else {}
    model, fake, images = attached(name, (3, 32, 32), **options)
    images = images[:4]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        floats = model(images)
        fake.active = True
        model.train()
        for _ in range(2):
            model(images)
        model.eval()
        rounded = model(images)
        again = model(images)
        fake.active = False
        assert torch.equal(model(images), floats), "inactive, it computes as before"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(rounded, again), "evaluation does not move the ranges"
    assert (fake.high > fake.low).all()
    error = (rounded - floats).std() / floats.std()
    assert 1e-6 < error < 0.3


def test_a_batch_norm_is_folded_only_if_nothing_else_reads_the_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.second, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = x + self.norm(x).relu()
            return self.head(self.last(self.second(x)).relu().mean((2, 3)))

    layout = find_layout(Net(), (3, 8, 8))
    assert {layer.name: layer.norm for layer in layout.layers} == {"first": None, "second": "last", "head": None}
    assert layout.points == ("in:first", "out:first", "in:second", "in:head")


def test_gradients_reach_all_parameters() -> None:
    model, fake, images = attached("cifar_mobilenetv2", (3, 32, 32))
    fake.active = True
    model(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_copy_for_tracing_computes_the_same() -> None:
    model, fake, images = attached("cifar_mobilenetv2", (3, 32, 32))
    plain = timm.create_model("cifar_mobilenetv2", num_classes=10)
    plain.load_state_dict(model.state_dict())
    fake.active = True
    with torch.no_grad():
        model(images)
        expected = model.eval()(images)
        found = int8_copy(plain.eval(), fake)(images)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.quantise_epochs=1"], "train.quantise_epochs needs train.quantise; give --train.quantise int8 too"),
        (["--train.quantise=int8", "--train.quantise_epochs=9"], "must be from 1 to train.epochs, 2, not 9"),
        (["--train.quantise=int8", "--train.compile=true"], "does not support train.compile"),
        (["--train.quantise=int8", "--train.grad_checkpointing=true"], "does not support train.grad_checkpointing"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny, "--train.epochs=2", *options, f"--output={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ranges_of_another_model_are_refused(command: Sequence[str], tmp_path: Path) -> None:

    fake = FakeInt8(find_layout(timm.create_model(MODEL, num_classes=10), (3, 8, 8)))
    record = fake.record()
    for damaged in (
        {},
        {"ranges": {}},
        {"ranges": record["ranges"] | {"in:other": [0, 1]}},
        {"ranges": record["ranges"] | {"in:conv1": [1, 2]}},
        {"ranges": record["ranges"] | {"in:conv1": "x"}},
    ):
        with pytest.raises(CheckpointError, match="do not fit the model"):
            fake.load_record(damaged)
