"""Which mean and standard deviation a model's images are normalised with: what is told, by whom, and what wins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from disk_kd.arguments import parse_run
from disk_kd.build import STUDENT, build_model
from disk_kd.cli import main
from disk_kd.data import Dataset, load_dataset
from disk_kd.models import create_model, save_state_dict
from disk_kd.models.about import METADATA, read_about
from disk_kd.models.staged import CIFAR100_MEAN, CIFAR100_STD
from disk_kd.trained import normalisation

MODEL = "cifar_resnet10_xxxs"
CIFAR = (CIFAR100_MEAN, CIFAR100_STD)
IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
GIVEN = "{mean: [0.1, 0.2, 0.3], std: [0.4, 0.5, 0.6]}"


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of Tiny-ImageNet's layout, and the same images as class folders in `folder`."""
    root = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("n01", "n02")):
            folder = root / split / name / "images"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 150, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{number}.png")
    shutil.copytree(root / "train", root / "folder" / "train")
    shutil.copytree(root / "val", root / "folder" / "test")
    return root


@pytest.fixture(scope="module")
def data(tiny_imagenet: Path) -> Dataset:
    return load_dataset("tiny-imagenet", root=tiny_imagenet)


@pytest.fixture(scope="module")
def foreign(tiny_imagenet: Path) -> Path:
    """A checkpoint of another program: nothing but weights."""
    torch.manual_seed(0)
    torch.save({"state_dict": create_model(MODEL, num_classes=2).state_dict()}, tiny_imagenet / "released.pth.tar")
    return tiny_imagenet / "released.pth.tar"


@pytest.fixture(scope="module")
def older(foreign: Path) -> Path:
    """A file of this package's from before it recorded the normalisation."""
    about = {"model": MODEL, "options": {}, "in_chans": 3, "image_size": 8, "classes": ["n01", "n02"]}
    weights = torch.load(foreign, weights_only=True)["state_dict"]
    save_state_dict(foreign.with_name("older.safetensors"), weights, {METADATA: json.dumps(about)})
    return foreign.with_name("older.safetensors")


def nll(
    capsys: pytest.CaptureFixture[str], weights: Path, root: Path, *options: str, name: str = "tiny-imagenet"
) -> float:
    capsys.readouterr()
    root = root / "folder" if name == "folder" else root
    assert main(["evaluate", str(weights), f"--data.name={name}", f"--data.root={root}", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)["nll"]


def given(values: tuple[tuple[float, ...], tuple[float, ...]]) -> list[str]:
    options = dict(zip(("mean", "std"), map(list, values), strict=True))
    return [f"--model.name={MODEL}", f"--model.options={json.dumps(options)}"]


def test_evaluation_of_foreign_and_of_older_files(
    tiny_imagenet: Path, foreign: Path, older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by = {
        name: nll(capsys, foreign, tiny_imagenet, *given(v)) for name, v in (("cifar", CIFAR), ("imagenet", IMAGENET))
    }
    assert abs(by["cifar"] - by["imagenet"]) > 1e-4
    assert nll(capsys, foreign, tiny_imagenet, f"--model.name={MODEL}") == by["imagenet"]
    assert nll(capsys, older, tiny_imagenet) == by["cifar"]
    assert nll(capsys, foreign, tiny_imagenet, f"--model.name={MODEL}", name="folder") == pytest.approx(by["cifar"])
    overlay = f"--model.options={{pretrained_cfg_overlay: {GIVEN}}}"
    assert nll(capsys, foreign, tiny_imagenet, f"--model.name={MODEL}", overlay) == nll(
        capsys, foreign, tiny_imagenet, *given(OWN)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], IMAGENET),
        (["--student.weights={foreign}"], IMAGENET),
        (["--student.weights={older}"], CIFAR),
        (["--student.pretrained=true", "--student.name=cifar_resnet10_s"], CIFAR),
        (["--student.name=cifar_vgg8"], IMAGENET),
        (["--student.name=test_resnet"], ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),  # as timm says
        ([f"--student.options={GIVEN}"], OWN),
        ([f"--student.options={GIVEN}", "--student.weights={older}"], OWN),
        ([f"--student.options={GIVEN}", "--student.name=test_resnet"], OWN),
        ([f"--student.options={{pretrained_cfg_overlay: {GIVEN}}}"], OWN),
    ],
)
def test_a_student(options: list[str], expected: object, data: Dataset, foreign: Path, older: Path) -> None:
    options = [option.replace("{foreign}", str(foreign)).replace("{older}", str(older)) for option in options]
    config = parse_run("train", [f"--student.name={MODEL}", *options])
    assert normalisation(build_model(config, "student", data)) == expected


@pytest.mark.parametrize(("file", "expected"), [("foreign", IMAGENET), ("older", CIFAR)])
def test_a_teacher(file: str, expected: object, data: Dataset, request: pytest.FixtureRequest) -> None:
    weights = request.getfixturevalue(file)
    config = parse_run("distill", [f"--teacher.name={MODEL}", f"--teacher.weights={weights}"])
    assert normalisation(build_model(config, "teacher", data)) == expected


@pytest.mark.parametrize(("options", "expected"), [([], IMAGENET), ([f"--student.options={GIVEN}"], OWN)])
def test_a_run_records_what_it_was_trained_with(
    options: list[str],
    expected: tuple[tuple[float, ...], tuple[float, ...]],
    tiny_imagenet: Path,
    tiny: Sequence[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, root = tmp_path / "run", f"--data.root={tiny_imagenet}"
    short = ["--train.batch_size=4", "--train.epochs=1"]
    assert main(["train", *tiny, *short, "--data.name=tiny-imagenet", root, *options, f"--output={run}"]) == 0
    about = read_about(run / STUDENT)
    assert (tuple(about["mean"]), tuple(about["std"])) == expected
    assert about["options"] == {}
    # Elsewhere, exported, and as the start of another run it stays what it was.
    trained = nll(capsys, run / STUDENT, tiny_imagenet)
    assert trained == pytest.approx(json.loads((run / "summary.json").read_text())["test"]["nll"])
    assert nll(capsys, run / STUDENT, tiny_imagenet, name="folder") == pytest.approx(trained)
    assert main(["export", str(run)]) == 0
    exported = run / "export" / f"{MODEL}.safetensors"
    assert nll(capsys, exported, tiny_imagenet, name="folder") == pytest.approx(trained)
    folder = load_dataset("folder", root=tiny_imagenet / "folder")
    config = parse_run("train", [f"--student.name={MODEL}", f"--student.weights={exported}"])
    assert normalisation(build_model(config, "student", folder)) == expected


def test_timms_configuration_is_not_changed_for_others() -> None:
    changed = create_model(MODEL, num_classes=2, mean=[0.5] * 3, std=[0.5] * 3)
    assert normalisation(changed) == ((0.5,) * 3,) * 2
    assert normalisation(create_model(MODEL, num_classes=2)) == CIFAR
