"""Every recipe runs: two steps of each on made data, with the starts and teachers that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disk_kd.arguments import parse_run
from disk_kd.files import save_tensors
from disk_kd.models import create_model
from disk_kd.models.settings import ModelSettings
from disk_kd.recipe import RECIPES as FOLDER
from disk_kd.recipe import list_recipes, load_recipe, recipe_of_run
from disk_kd.run import execute

RECIPES = list_recipes()
RUN_PAIR = "wrn_40_2-wrn_40_1"
"""Of the standard benchmark: whose methods are run; those of the other pairs differ in the models."""
CLASSES = 20
SHORT = ["--train.epochs=1", "--train.cycles=1", "--train.warmup_epochs=0", "--train.log_every=1", "--quiet"]
# Recipes do not compile, and a trial of it takes longer than the two steps.
SHORT += ["--train.compile=false", "--train.batch_size=40"]

# The smallest models of timm in the place of ImageNet's, which would take minutes a step.
SMALL = ["--data.image_size=32", "--data.validation=0.2", "--data.workers=0", "--student.name=test_resnet"]
SMALL += ["--student.pretrained=false"]
TEACHER = ["--teacher.name=test_vit", '--teacher.options={"img_size": 48, "patch_size": 8}']


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: four images each to train on, one to validate and one to test, 16x16 noise of their own colour."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 1)):
        for label in range(CLASSES):
            folder = root / split / f"class{label:02d}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 80, (16, 16, 3)) + generator.integers(0, 175, 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that teachers, starts and stored outputs are made once."""
    return tmp_path_factory.mktemp("runs")


def make_weights(model: ModelSettings, part: str, runs: Path, num_classes: int, in_chans: int) -> None:
    """Random weights in the run directory that `model` names."""
    assert model.weights is not None
    folder = Path(model.weights)
    if not folder.exists():
        folder.mkdir(parents=True)
        made = create_model(model.name, num_classes=num_classes, in_chans=in_chans, **model.options)
        save_tensors(folder / "student.safetensors", made.state_dict())


def same_but_for_the_models(recipe: str) -> bool:
    """Whether another pair of the standard benchmark trains by the same method on the same outputs, its logits."""
    pair, _, stem = recipe.removeprefix("standard/").partition("/")
    return recipe.startswith("standard/") and stem != "" and pair != RUN_PAIR and "hint" not in options_of(recipe)


def options_of(recipe: str) -> dict[str, Any]:
    return load_recipe(Path(str(FOLDER)) / f"{recipe}.yaml")


@pytest.mark.parametrize("recipe", sorted(filter(same_but_for_the_models, RECIPES)))
def test_recipe_is_that_of_another_pair(recipe: str) -> None:
    """What is not run below."""
    options, other = options_of(recipe), options_of(f"standard/{RUN_PAIR}/{Path(recipe).name}")
    assert options.keys() - {"published"} == other.keys() - {"published"}
    assert options["method"].keys() == other["method"].keys()
    assert parse_run("distill", [recipe]).method == other["method"]["name"]


@pytest.mark.parametrize("recipe", sorted(recipe for recipe in RECIPES if not same_but_for_the_models(recipe)))
def test_recipe_runs_two_steps(recipe: str, images: Path, runs: Path, tmp_path: Path) -> None:
    options = [*SHORT, f"--runs={runs}", f"--output={tmp_path / 'run'}"]
    digits = recipe.startswith("digits")
    if digits:
        options += ["--data.limit_train=80"]
    elif recipe.startswith("imagenet"):
        options += [*SMALL, f"--data.root={images}", *(TEACHER if not recipe.endswith("/ce") else [])]
    else:
        # The regions of SDD need maps of some places, which these students do not have at 16x16.
        side = 32 if recipe.endswith("v2/sdd") else 16
        options += ["--data.name=folder", f"--data.root={images}", f"--data.image_size={side}", "--data.validation=0.2"]
        options += ["--data.augment.crop_padding=2", "--data.augment.cutout=4"]
    config = parse_run("distill", [recipe, *options])
    if config.method_options.get("variant") == "paper":
        config = parse_run("distill", [recipe, *options, "--method.helper_warmup_epochs=1"])
    sizes = {"num_classes": 10, "in_chans": 1} if digits else {"num_classes": CLASSES, "in_chans": 3}
    if config.teacher is not None and config.teacher.pretrained:
        made = ["--teacher.pretrained=false", f"--teacher.weights={runs / config.teacher.name}"]
        config = parse_run("distill", [recipe, *options, *made])
    for model in (config.teacher, config.student):
        if model is not None and model.weights is not None:
            assert recipe_of_run(Path(model.weights), runs) in RECIPES or Path(model.weights).parent == runs
            make_weights(model, **sizes)

    summary = execute(config)
    assert summary["student_epochs"] == 1
    assert summary["description"]
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    student_steps = [line for line in lines if line["kind"] == "train" and line["phase"] in ("student", "joint")]
    assert len(student_steps) == 2
    terms = ["loss"] + ["hint_loss"] * (config.hint is not None)
    assert all(isinstance(line[term], float) for line in student_steps for term in terms)
