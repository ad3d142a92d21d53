"""Runs on unequal classes: balanced sampling, class weights, the teacher's confidence, the checkpoint, the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disk_kd.cli import main
from disk_kd.training.selection import BALANCED_RULE
from processes import start_ranks

TINY = {"name": "test_vit", "options": {"img_size": 8, "patch_size": 4}}
"""A model without batch norms, whose statistics would be those of a rank's own images."""
RECIPE: dict[str, Any] = {
    "data": {"root": "photos", "unlabelled": "more", "image_size": 8, "unlabelled_share": 0.5, "sampling": "balanced"},
    "student": TINY,
    "teacher": {**TINY, "weights": "teacher"},
    "method": {"name": "kd"},
    "train": {"epochs": 3, "batch_size": 8, "lr": 0.01, "log_every": 1, "compile": False, "select_by": "balanced"},
}
RECIPE["data"] |= {"unlabelled_confidence": 0.8, "augment": {"crop_padding": 1}}
MEASURED = {"loss", "ce_loss", "kd_loss", "scaffold_loss", "budget_used", "counted", "labelled", "top1"}
COUNTS = {"bird": 16, "cat": 6, "dog": 2}


def write_image(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([label, number]).integers(0, 120, (8, 8, 3))
    Image.fromarray((noise + 60 * label).astype("uint8")).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images, a teacher, a recipe, and the run of it by one process."""
    folder = tmp_path_factory.mktemp("unequal-runs")
    for label, (name, count) in enumerate(COUNTS.items()):
        for split, numbers in (
            ("train", range(count)),
            ("val", range(20, 20 + count)),
            ("test", range(40, 40 + count)),
        ):
            for number in numbers:
                write_image(folder / "photos" / split / name / f"{number}.png", label, number)
        for number in range(100, 108):
            write_image(folder / "more" / f"{label}-{number}.png", label, number)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    weights = {**RECIPE, "data": {"root": "photos", "image_size": 8}, "method": {"name": "disk", "budget": 0.2}}
    weights["train"] = RECIPE["train"] | {"class_weights": "effective", "logit_adjustment": 0.5}
    (folder / "weights.yaml").write_text(json.dumps(weights))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--student.name=test_vit", f"--student.options={json.dumps(TINY['options'])}"]
        data = ["--data.root=photos", "--train.epochs=6", "--train.lr=0.02", "--train.batch_size=8"]
        assert main(["train", *options, *data, "--output=teacher", "--quiet"]) == 0
    return folder


def run(folder: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(["distill", *arguments])


def lines(path: Path, kind: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.mark.parametrize("recipe", ["recipe.yaml", "weights.yaml"])
def test_ranks_and_micro_batches_learn_what_one_process_does(folder: Path, recipe: str) -> None:
    name = recipe.partition(".")[0]
    assert run(folder, recipe, f"--output={name}-one", "--quiet") == 0
    commands = start_ranks(["distill", recipe, f"--output={name}-two"], folder)
    assert [command.wait() for command in commands] == [0, 0], "".join(command.said() for command in commands)
    assert run(folder, recipe, "--train.accumulate=2", f"--output={name}-parts", "--quiet") == 0
    ours = lines(folder / f"{name}-one")
    for other in ("two", "parts"):
        theirs = lines(folder / f"{name}-{other}")
        assert len(ours) == len(theirs) >= 9
        for line, second in zip(ours, theirs, strict=True):
            for key in line.keys() & MEASURED:
                assert second[key] == pytest.approx(line[key], rel=2e-3, abs=2e-4), (other, line["step"], key)
    if name == "recipe":
        assert any(0 < line["counted"] < 1 for line in ours), "the confidence leaves out some images and not others"


def test_balanced_accuracy_chooses_the_checkpoint_and_the_summary_names_the_worst_class(folder: Path) -> None:
    assert run(folder, "weights.yaml", "--output=chosen", "--quiet") == 0
    summary = json.loads((folder / "chosen" / "summary.json").read_text())
    scores = [line["balanced"] for line in lines(folder / "chosen", "validation")]
    errors = [line["balanced_error"] for line in lines(folder / "chosen", "validation")]
    best = max(scores)
    margin = errors[scores.index(best)]
    chosen = max(
        epoch for epoch in (1, 2, 3) if scores[epoch - 1] >= max(scores[:epoch]) - errors[_first(scores, epoch)]
    )
    assert summary["selected_epoch"] == chosen
    about = {"rule": BALANCED_RULE, "by": "balanced", "margin": round(margin, 3), "validation_images": 24}
    assert summary["selection"] == {**about, "best_balanced": best}
    test = summary["test"]
    assert summary["worst_classes"]["test"] == list(COUNTS)[test["worst_class"]]
    assert test["worst_top1"] <= test["balanced"] != test["top1"]


def _first(scores: list[float], epoch: int) -> int:
    return scores.index(max(scores[:epoch]))


def test_the_tables_show_classes_if_these_are_unequal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ["--seeds=1", "--train.epochs=1"]
        assert main(["compare", "recipe.yaml", "weights.yaml", *short, "--runs=table"]) == 0
    assert "balanced %" in capsys.readouterr().out
    text = "".join(path.read_text() for path in (folder / "table").rglob("*.md"))
    assert all(word in text for word in ("balanced %", "macro F1 %", "worst class %", "mean accuracy of the classes"))
    (csv,) = (folder / "table").rglob("*.csv")
    assert {"balanced", "macro_f1", "worst_top1"} <= set(csv.read_text().splitlines()[0].split(","))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.class_weights=inverse"], "data.sampling=balanced makes classes equally frequent, and train.class_w"),
        (["--train.logit_adjustment=1"], "would weigh them again; give one of the two"),
        (["--data.sampling=shuffle", "--train.class_weights=inverse", "--method.ce_weight=0"], "method.ce_weight is 0"),
        (["--train.class_weights_beta=1"], "train.class_weights_beta must be in [0, 1), not 1"),
        (["--data.unlabelled_confidence=2"], "data.unlabelled_confidence must be a probability in [0, 1], not 2"),
        (["--method=disk"], "data.unlabelled_confidence is for methods that compare logits"),
        (["--hint=crd", "--data.unlabelled_share=auto"], "data.sampling=balanced repeats images"),
        (["--train.select_by=mean"], "select_by"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "recipe.yaml", *options, "--output=refused", "--quiet") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "refused").exists()


def test_methods_that_cannot_are_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--method=timm-logits"], "TimmLogitTask does not weigh classes"),
        (["--method=self-training", "--train.class_weights=none"], "self-training needs images without labels"),
    ):
        assert run(folder, "weights.yaml", *options, "--output=refused", "--quiet") == 2
        assert message in capsys.readouterr().err


def test_self_training_runs_and_resumes(folder: Path) -> None:
    options = ["recipe.yaml", "--method=self-training", "--data.views=2", "--teacher.store=true", "--output=self"]
    assert run(folder, *options, "--quiet") == 0
    assert run(folder, *options, "--resume", "--quiet") == 0
    end = json.loads((folder / "self" / "summary.json").read_text())["end"]
    assert end["pseudo_loss"] > 0
    assert 0 < end["counted"] <= 0.5
