"""The weights that are part of the package: found without a network, and as good as their card says."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import timm
import torch

from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.measure import evaluate_split
from disk_kd.models import create_model, load_state_dict, read_metadata, shipped_weights

NAMES = ["cifar_resnet10_l", "cifar_resnet10_s"]
CIFAR100 = Path(__file__).parents[3] / "shared" / "data"
CARD = (shipped_weights(NAMES[0]).parent / "README.md").read_text()


def test_the_files_are_small_and_the_only_ones() -> None:
    files = list(shipped_weights(NAMES[0]).parent.glob("*.safetensors"))
    assert {file.stem for file in files} == set(NAMES)
    assert sum(file.stat().st_size for file in files) <= 3 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_timm_loads_them_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    weights = load_state_dict(shipped_weights(name))
    for model in (timm.create_model(name, pretrained=True), create_model(name, num_classes=100, pretrained=True)):
        for key, value in model.state_dict().items():
            assert torch.equal(value, weights[key].to(value.dtype)), key
    other = timm.create_model(name, pretrained=True, num_classes=7, in_chans=1)
    assert other(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert name in timm.list_models("cifar_*", pretrained=True)
    assert len(read_metadata(shipped_weights(name))["disk_kd"]) > 100


def test_a_shipped_teacher_must_fit_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher.name=cifar_resnet10_l", "--teacher.weights=null", "--teacher.pretrained=true"]
    assert main(["distill", "digits/kd", *teacher, f"--runs={tmp_path}"]) == 2
    assert "cifar_resnet10_l.safetensors does not fit ResNet" in capsys.readouterr().err
    assert main(["evaluate", "cifar_resnet10_m"]) == 2
    assert "no weights at cifar_resnet10_m; give a finished run directory, a file, or" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (CIFAR100 / "cifar100-test.tar").is_file(), reason="no CIFAR-100 beside the repository")
def test_they_are_as_good_as_the_card_says() -> None:
    test = load_dataset("cifar100", root=CIFAR100).test
    for name in NAMES:
        said = float(re.search(rf"{name}\b.*?top-1 ([\d.]+)%", CARD, flags=re.DOTALL)[1])
        model = timm.create_model(name, pretrained=True)
        assert evaluate_split(model, test, torch.device("cpu")).top1 == pytest.approx(said, abs=0.05)
