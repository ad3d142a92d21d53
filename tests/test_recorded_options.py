"""What a file of weights records of its model, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from disk_kd.arguments import parse_evaluation, parse_run
from disk_kd.build import STUDENT, build_model, build_task, recorded_in_files, teacher_image_size
from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.errors import CheckpointError
from disk_kd.models import load_state_dict, save_state_dict
from disk_kd.models.about import METADATA, read_about
from disk_kd.training import CHECKPOINT
from disk_kd.training.checkpoint import load_checkpoint

NAME = "resnet10t"
OPTIONS = "{act_layer: gelu, pretrained_cfg_overlay: {mean: [0.3, 0.3, 0.3], std: [0.2, 0.2, 0.2]}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A teacher with options of its own."""
    folder = tmp_path_factory.mktemp("recorded") / "teacher"
    options = [f"--student.name={NAME}", f"--student.options={OPTIONS}"]
    assert main(["train", *tiny, *options, "--train.epochs=1", "--train.ema_decay=0.9999", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    """The same weights, elsewhere, as trained on images of 16 pixels of which evaluation sees the middle half."""
    path = run.parent / "larger.safetensors"
    about = read_about(run / STUDENT) | {"image_size": 16, "crop_pct": 0.5}
    save_state_dict(path, load_state_dict(run / STUDENT), {METADATA: json.dumps(about)})
    return path


def test_a_run_records_them(run: Path) -> None:
    about = read_about(run / STUDENT)
    assert (about["model"], about["options"]) == (NAME, yaml.safe_load(OPTIONS))
    assert (about["image_size"], about["crop_pct"]) == (8, 1.0)


def test_an_average_over_a_short_run_is_near_the_last_weights(run: Path) -> None:
    shipped, last = load_state_dict(run / STUDENT), load_checkpoint(run / CHECKPOINT)["task"]
    norm = "bn1.running_var"  # which begins at 1
    moved = (last[f"trainable_module.{norm}"] - 1).norm()
    assert (shipped[norm] - 1).norm() > 0.5 * moved > 0


@pytest.mark.parametrize(
    ("given", "activation"),
    [([], "GELU"), (["--teacher.options={act_layer: silu}"], "SiLU")],
)
def test_a_teacher_is_built_as_it_was_trained_unless_told_otherwise(
    run: Path, given: list[str], activation: str, tiny: Sequence[str]
) -> None:
    config = recorded_in_files(
        parse_run("distill", [*tiny, f"--teacher.name={NAME}", f"--teacher.weights={run}", "--output=o", *given])
    )
    assert config.teacher is not None
    assert config.teacher.options.keys() == {"act_layer", "pretrained_cfg_overlay"}
    assert "act_layer" in config.to_tree()["teacher"]["options"]
    model = build_model(config, "teacher", load_dataset("digits"))
    assert type(model.get_submodule("act1")).__name__ == activation


def test_a_teacher_sees_images_of_the_size_it_learned_from(run: Path, file: Path, tiny: Sequence[str]) -> None:
    dataset = load_dataset("digits")
    for weights, more, expected in ((run, [], None), (file, [], 16), (file, ["--teacher.image_size=24"], 24)):
        options = [f"--teacher.name={NAME}", f"--teacher.weights={weights}", "--output=o", *more]
        config = parse_run("distill", [*tiny, *options])
        assert teacher_image_size(config, dataset) == expected
        task = build_task(config, dataset, torch.device("cpu"))
        assert task.teacher is not None
        assert task.teacher.image_size == (None if expected is None else (expected, expected))


def test_a_student_that_starts_from_such_weights_records_them_again(run: Path, tiny: Sequence[str]) -> None:
    start = [f"--student.name={NAME}", f"--student.weights={run}", "--output=o"]
    assert "act_layer" in recorded_in_files(parse_run("train", [*tiny, *start])).student.options
    other = ["--student.name=resnet18", f"--student.weights={run}", "--output=o"]
    assert recorded_in_files(parse_run("train", [*tiny, *other])).student.options == {}
    gone = [f"--student.name={NAME}", "--student.weights=nowhere.safetensors", "--output=o"]
    assert recorded_in_files(parse_run("train", [*tiny, *gone])).student.options == {}


def nll(capsys: pytest.CaptureFixture[str], *arguments: object) -> float:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["nll"]


def test_evaluation_takes_them_from_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = nll(capsys, run)
    assert nll(capsys, run, f"--model.name={NAME}") == expected
    assert nll(capsys, run, f"--model.name={NAME}", "--model.options={act_layer: relu}") != expected


def test_a_file_elsewhere_keeps_its_crop(file: Path) -> None:
    assert parse_evaluation([str(file)]).data.crop_pct == 0.5
    assert parse_evaluation([str(file), "--data.crop_pct=0.7"]).data.crop_pct == 0.7


def test_another_programs_configuration_beside_a_file_is_left_alone(run: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    (tmp_path / "config.yaml").write_text("model: resnet\ndata: {limit_train: 8, crop_pct: 0.5}\n")
    assert parse_evaluation([str(tmp_path / "w.pth")]).data.limit_train is None
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert parse_evaluation([str(tmp_path / "w.pth")]).data.limit_train == 120


@pytest.mark.parametrize("about", ['{"model": 3}', '{"hint": []}', "[]", "{"])
def test_what_no_run_wrote_is_refused(about: str, tmp_path: Path) -> None:
    save_state_dict(tmp_path / "m.safetensors", {"a": torch.ones(1)}, {METADATA: about})
    with pytest.raises(CheckpointError, match=r"the model metadata of .* cannot be read; give a file that a run wrote"):
        read_about(tmp_path / "m.safetensors")


def test_the_cause_of_an_unreadable_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"damaged" * 100)
    with pytest.raises(CheckpointError, match="is not a safetensors file or is damaged"):
        read_about(tmp_path / "m.safetensors")
