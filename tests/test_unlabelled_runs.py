"""Runs on labelled and unlabelled images: resumed, stored, on two ranks, divided, and without any label."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from disk_kd.cli import main
from processes import Command, start_ranks

TINY = {"name": "test_vit", "options": {"img_size": 8, "patch_size": 4}}
"""A model without batch norms, whose statistics would be those of a rank's own images."""
RECIPE: dict[str, Any] = {
    "data": {"root": "photos", "unlabelled": "more", "image_size": 8, "unlabelled_share": 0.6, "stream": True},
    "student": TINY,
    "teacher": {**TINY, "weights": "teacher"},
    "method": {"name": "disk", "budget": 0.2},
    "train": {"epochs": 4, "batch_size": 16, "lr": 0.01, "log_every": 1, "compile": False, "checkpoint_every_s": 0},
}
RECIPE["data"] |= {"workers": 0, "augment": {"crop_padding": 1}}


def write_image(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([label, number]).integers(0, 120, (8, 8, 3))
    Image.fromarray((noise + 60 * label).astype("uint8")).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images, a teacher, a recipe, and the run of it by one process."""
    folder = tmp_path_factory.mktemp("unlabelled-runs")
    for label, name in enumerate(("bird", "cat", "dog")):
        for split, numbers in (("train", range(8)), ("val", range(8, 12)), ("test", range(12, 16))):
            for number in numbers:
                write_image(folder / "photos" / split / name / f"{number}.png", label, number)
        for number in range(100, 120):
            write_image(folder / "more" / f"{number % 3}" / f"{label}-{number}.png", label, number)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--student.name=test_vit", f"--student.options={json.dumps(TINY['options'])}"]
        data = ["--data.root=photos", "--train.epochs=2", "--train.lr=0.01", "--train.batch_size=8"]
        assert main(["train", *options, *data, "--output=teacher", "--quiet"]) == 0
        assert main(["distill", "recipe.yaml", "--output=one", "--quiet"]) == 0
    return folder


def run(folder: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(["distill", "recipe.yaml", *arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == "train"]


def check_alike(one: Path, other: Path, **tolerance: float) -> None:
    ours, theirs = lines(one), lines(other)
    assert len(ours) == len(theirs) > 10
    for line, second in zip(ours, theirs, strict=True):
        for name in ("loss", "ce_loss", "scaffold_loss", "budget_used", "top1", "labelled"):
            assert second[name] == pytest.approx(line[name], **tolerance), (line["step"], name)


def test_the_images_of_an_epoch_and_of_the_run_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--output=told", "--train.epochs=1") == 0
    assert "An epoch has about 32 labelled and 48 unlabelled images, of 24 and 60" in capsys.readouterr().out
    summary = json.loads((folder / "one" / "summary.json").read_text())
    assert (summary["train_samples"], summary["unlabelled_samples"]) == (84, 60)
    assert summary["images_seen"] == {"labelled": 128, "unlabelled": 192}
    assert summary["end"]["labelled"] == pytest.approx(40)


def test_killed_and_resumed_with_a_store_a_run_is_the_undisturbed_one(folder: Path) -> None:
    arguments = ["recipe.yaml", "--teacher.store=true", "--data.views=2"]
    assert run(folder, *arguments[1:], "--output=whole", "--quiet") == 0
    process = Command(["distill", *arguments, "--output=broken"], folder)
    log = folder / "broken" / "metrics.jsonl"
    process.wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 4)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert run(folder, *arguments[1:], "--output=broken", "--resume", "--quiet") == 0
    whole, broken = folder / "whole", folder / "broken"
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    one, other = (load_file(path / "student.safetensors") for path in (whole, broken))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_stored_outputs_are_those_of_the_teacher_at_each_step(folder: Path) -> None:
    for store in ("true", "false"):
        assert run(folder, f"--teacher.store={store}", "--data.views=2", f"--output=store-{store}", "--quiet") == 0
    check_alike(folder / "store-true", folder / "store-false", rel=2e-2, abs=2e-2)


def test_two_ranks_and_micro_batches_learn_what_one_process_does(folder: Path) -> None:
    commands = start_ranks(["distill", "recipe.yaml", "--output=two"], folder)
    assert [command.wait() for command in commands] == [0, 0], "".join(command.said() for command in commands)
    check_alike(folder / "one", folder / "two", rel=1e-4, abs=1e-5)
    assert run(folder, "--train.accumulate=4", "--output=parts", "--quiet") == 0
    check_alike(folder / "one", folder / "parts", rel=1e-3, abs=1e-4)


def test_without_any_label_the_classes_are_the_teachers(folder: Path) -> None:
    (folder / "alone.yaml").write_text(json.dumps({**RECIPE, "data": {"unlabelled": "more"}, "method": {"name": "kd"}}))
    command = ["distill", "alone.yaml", "--method.ce_weight=0", "--output=alone"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(command) == 0
        assert main([*command, "--resume", "--quiet"]) == 0
        assert main(["evaluate", "alone", "--data.root=photos"]) == 0
    summary = json.loads((folder / "alone" / "summary.json").read_text())
    assert (summary["classes"], summary["images_seen"]["labelled"]) == (3, 0)
    assert not {"validation", "test"} & summary.keys()
    assert all(line["top1"] is None and line["ce_loss"] == 0 for line in lines(folder / "alone"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method=ce"], "ce learns from labels alone"),
        (["--method=dkd"], "dkd needs the label of each image"),
        (["--method=wkd"], "wkd treats the label separately; give method.separate=false"),
        (["--method=timm-logits"], "timm's tasks need the label of each image"),
        (["--hint=crd"], "crd needs each image at most once in a batch, but data.unlabelled_share repeats images"),
        (["--data.unlabelled_share=-0.1"], "data.unlabelled_share must be a share in [0, 1], or auto, not -0.1"),
        (["--data.unlabelled=photos/test"], "12 of 12 unlabelled images have the bytes of held-out images"),
    ],
)
def test_what_cannot_learn_is_refused_in_one_line(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *options, "--output=refused", "--quiet") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "refused").exists()


def test_methods_and_hints_that_take_them_run_with_both_kinds(folder: Path) -> None:
    for options in (["--method=dist"], ["--method=wkd", "--method.separate=false"], ["--method=ce", "--hint=rkd"]):
        output = folder / "methods" / options[-1].replace("=", "-")
        assert run(folder, *options, f"--output={output}", "--train.epochs=1", "--quiet") == 0
        shutil.rmtree(output)
    crd = ["--method=kd", "--hint=crd", "--hint.negatives=16", "--data.unlabelled_share=auto", "--train.epochs=1"]
    assert run(folder, *crd, "--output=crd", "--quiet") == 0
