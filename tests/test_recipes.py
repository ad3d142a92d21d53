"""Every recipe runs: two steps of each on made data, with the starts and teachers that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disk_kd.config import list_recipes, parse_run, recipe_of, resolve_weights
from disk_kd.files import save_tensors
from disk_kd.models import create_model
from disk_kd.run import execute

SHORT = ["--train.passes=1", "--train.cycles=1", "--train.warmup_passes=0", "--train.log_every=1", "--quiet"]


@pytest.mark.parametrize("recipe", sorted(list_recipes()))
def test_recipe_runs_two_steps(recipe: str, class_folders: Path, tmp_path: Path) -> None:
    options = [*SHORT, f"--runs={tmp_path}"]
    if recipe.startswith("digits/"):
        classes, channels = 10, 1
        options += ["--data.limit_train=40", "--train.batch_size=20"]
    else:
        classes, channels = 100, 3
        options += [
            "--data.name=folder",
            f"--data.root={class_folders}",
            "--data.image_size=16",
            "--data.validation=0.25",
        ]
        options += ["--data.augment.crop_padding=2", "--data.augment.cutout=4", "--train.batch_size=150"]
    config = parse_run("distill", [recipe, *options])
    if config.method_options.get("variant") == "paper":
        config = parse_run("distill", [recipe, *options, "--method.helper_warmup_passes=1"])
    for part, model in (("teacher", config.teacher), ("student", config.student)):
        if model is not None and recipe_of(model.weights) is not None:
            assert recipe_of(model.weights) in list_recipes()
            made = create_model(model.name, num_classes=classes, in_chans=channels)
            folder = Path(resolve_weights(model.weights, part, tmp_path, 0) or "")
            folder.mkdir(parents=True)
            save_tensors(folder / "student.safetensors", made.state_dict())

    summary = execute(config)
    assert summary["student_passes"] == 1
    assert summary["description"]
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    student_steps = [line for line in lines if line["kind"] == "train" and line["phase"] == "student"]
    assert len(student_steps) == 2
    assert all(isinstance(line["loss"], float) for line in student_steps)
