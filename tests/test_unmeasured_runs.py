"""Runs without an accuracy in every command that looks at runs, and files that name models of the network."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from disk_kd.cli import main
from disk_kd.models.about import METADATA, read_about

MODEL = "cifar_resnet10_xxxs"
TRAIN = ["--train.epochs=1", "--train.batch_size=8", "--train.compile=false", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With labelled `photos`, a `teacher`, and the runs `none`, without labels, and `feature`, without a classifier."""
    folder = tmp_path_factory.mktemp("unmeasured")
    for label, name in enumerate(["cat", "dog"]):
        for part, count in (("train", 8), ("test", 4)):
            (folder / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng([label, number, count]).integers(0, 120, (8, 8, 3))
                image = Image.fromarray((noise + 120 * label).astype("uint8"))
                image.save(folder / "photos" / part / name / f"{number}.png")
    photos = [f"--data.root={folder}/photos", "--data.image_size=8"]
    learn = ["--student.name", MODEL, *TRAIN, f"--runs={folder}", f"--teacher.weights={folder}/teacher"]
    assert main(["train", *photos, "--student.name", MODEL, *TRAIN, f"--output={folder}/teacher"]) == 0
    unlabelled = [f"--data.unlabelled={folder}/photos/train", "--data.image_size=8", "--method.ce_weight=0"]
    assert main(["distill", *unlabelled, *learn, f"--output={folder}/none"]) == 0
    assert main(["distill", *photos, "--method=feature", *learn, f"--output={folder}/feature"]) == 0
    return folder


@pytest.mark.parametrize("run", ["none", "feature"])
def test_the_report_of_a_run_without_accuracy_says_so(folder: Path, run: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(folder / run)]) == 0, capsys.readouterr().err
    page = (folder / run / "report.html").read_text(encoding="utf-8")
    assert f"The accuracy of {run} was not measured" in page
    assert "not measured" in page


def test_a_run_without_labels_is_measured_on_other_data(folder: Path, capsys: pytest.CaptureFixture) -> None:
    photos = f"--data.root={folder}/photos"
    assert main(["evaluate", str(folder / "none"), photos, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 8
    assert main(["evaluate", str(folder / "none"), photos, "--teachers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[MODEL]["samples"] == 8
    assert main(["probe", str(folder / "none"), photos, f"--runs={folder}", f"--output={folder}/probe"]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "none"], r"none has no test split; give --data.root, a folder of labelled images"),
        (["inspect", "none"], r"has no labelled training images"),
        (["advise", "none/config.yaml"], r"advise measures the teacher on labelled images, and there are none"),
        (["advise", "feature/config.yaml"], r"method feature does not read the teacher's classes to advise on"),
    ],
)
def test_what_needs_labels_or_classes_is_one_line(
    folder: Path, command: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([command[0], str(folder / command[1])]) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"options": {"pretrained": True}}, "the model metadata of .* cannot be read"),
        (
            {
                "hint": {
                    "name": "simkd",
                    "options": {},
                    "teacher": {"name": "resnet18", "options": {"pretrained": True}},
                }
            },
            "the model metadata of .* cannot be read",
        ),
        ({"model": "transformers:owner/name"}, "cannot be read as an image classifier"),
        ({"model": "linear:transformers:owner/name", "options": {"features": 8}}, "cannot be read as an image"),
        (
            {"model": "zeroshot:open_clip", "options": {"features": 8, "config": {"vision_cfg": {}}}},
            "has no image tower of this configuration",
        ),
        ({"model": "linear:hf-hub:owner/name", "options": {"features": 8}}, "hf-hub:owner/name|does not fit"),
    ],
)
def test_a_file_of_weights_never_leads_to_the_network(
    folder: Path,
    tmp_path: Path,
    recorded: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for package in ("open_clip", "transformers"):
        if package in str(recorded):
            pytest.importorskip(package)
    asked: list[str] = []

    def unreachable(host: str, *_: Any, **__: Any) -> NoReturn:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    trained = folder / "teacher" / "student.safetensors"
    about, file = read_about(trained) | recorded, tmp_path / "given.safetensors"
    save_file(load_file(trained), file, metadata={METADATA: json.dumps(about)})
    photos = [f"--data.root={folder}/photos", "--data.image_size=8"]
    distill = ["distill", *photos, "--student.name", MODEL, *TRAIN, f"--output={tmp_path}/run"]
    for command in (["evaluate", str(file), *photos], [*distill, f"--teacher.weights={file}"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert re.search(message, error), error
    assert asked == []
