"""Every recipe has its recorded options and is read; every file of recipes runs two steps on made data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disk_kd.arguments import parse_run
from disk_kd.errors import ConfigError
from disk_kd.files import save_tensors
from disk_kd.models import create_model
from disk_kd.models.settings import ModelSettings
from disk_kd.recipe import _row, find_recipe, list_recipes, load_recipe, recipe_name, recipe_of_run, run_folder
from disk_kd.run import execute

RECIPES = list_recipes()
GOLDEN = Path(__file__).parent / "golden" / "recipes.json"
FIRST = "standard/resnet56-resnet20/"
"""The pair of the standard benchmark with the smallest models: its methods are run."""
CLASSES = 10
SHORT = ["--train.epochs=1", "--train.cycles=1", "--train.warmup_epochs=0", "--train.log_every=1", "--quiet"]
# Recipes do not compile, and a trial of it takes longer than the two steps.
SHORT += ["--train.compile=false", "--train.batch_size=10"]

# The smallest models of timm in the place of ImageNet's, which would take minutes a step.
SMALL = ["--data.image_size=32", "--data.validation=0.34", "--data.workers=0", "--student.name=test_resnet"]
SMALL += ["--student.pretrained=false"]
TEACHER = ["--teacher.name=test_vit", '--teacher.options={"img_size": 48, "patch_size": 8}']


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: two images each to train on, one to validate and one to test, 16x16 noise of their own colour."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
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


def make_weights(model: ModelSettings, num_classes: int, in_chans: int) -> None:
    """Random weights in the run directory that `model` names."""
    assert model.weights is not None
    folder = Path(model.weights)
    if not folder.exists():
        folder.mkdir(parents=True)
        made = create_model(model.name, num_classes=num_classes, in_chans=in_chans, **model.options)
        save_tensors(folder / "student.safetensors", made.state_dict())


def options_of(recipe: str) -> dict[str, Any]:
    return load_recipe(find_recipe(recipe))


def parts_of(recipe: str) -> set[Hashable]:
    """What a recipe is made of, to be run with it or with another: its files, and the method's options.

    A hint reads features, so it also meets each family of students, and the layers that a row gives it.
    """
    row = _row(find_recipe(recipe))
    if row is None:
        return {recipe}
    options = options_of(recipe)
    parts: set[Hashable] = {*row["base"][:-1], way_of(recipe)}
    if "hint" in options:
        parts.add((options["hint"]["name"], re.findall("[a-z]+", options["student"]["name"])[1]))
        parts |= {recipe} if "hint" in row else set()
    return parts


def way_of(recipe: str) -> tuple[str, ...]:
    """Of a composed recipe: its method file, and the names of the method's options."""
    row = _row(find_recipe(recipe))
    assert row is not None
    return row["base"][-1], *sorted(options_of(recipe)["method"])


def covering() -> dict[str, set[Hashable]]:
    """Recipes that have between them all parts of all recipes, and what each is the first to have."""
    chosen, seen = {}, set[Hashable]()
    for recipe in sorted(RECIPES, key=lambda recipe: (not recipe.startswith(FIRST), recipe)):
        if new := parts_of(recipe) - seen:
            chosen[recipe] = new
            seen |= new
    return chosen


RUN = covering()


def recorded(recipe: str) -> str:
    """A digest of a recipe's options, which tells whether any of them changed."""
    return hashlib.sha256(json.dumps(options_of(recipe), sort_keys=True).encode()).hexdigest()[:8]


def test_every_recipe_has_its_recorded_options() -> None:
    """Recorded by `python tests/record_recipes.py`, which is to be run after an intended change."""
    assert {recipe: recorded(recipe) for recipe in RECIPES} == json.loads(GOLDEN.read_text())


def test_a_name_is_composed_of_pair_method_and_row() -> None:
    recipe = options_of("standard/vgg13-mobilenetv2/ttm")
    assert recipe["description"] == "mobilenetv2 from vgg13, TTM"  # pair, method
    assert recipe["student"] == {"name": "cifar_mobilenetv2"}  # pair
    assert recipe["teacher"] == {"name": "cifar_vgg13", "weights": "recipe:standard/teacher-vgg13"}
    assert recipe["train"]["lr"] == 0.01  # pair, over 0.05 of its base
    assert recipe["train"]["epochs"] == 240  # the pair's base
    assert recipe["method"] == {"name": "ttm", "temperature": 5.0, "ce_weight": 1.0, "ttm_weight": 16.0}  # method, row
    assert recipe["published"] == 68.98  # row
    assert recipe.keys() == {"data", "description", "student", "teacher", "train", "method", "published"}


def test_a_row_may_name_its_teacher() -> None:
    one, other = (options_of(f"cifar100/shufflenetv2/{teacher}-kd") for teacher in ("resnet32x4", "wrn_40_2"))
    assert [each["teacher"]["name"] for each in (one, other)] == ["cifar_resnet32x4", "cifar_wrn_40_2_postact"]
    assert (one["description"], one["published"], other["published"]) == ("KD, from resnet32x4", 79.13, 75.81)
    assert one["method"] == other["method"]
    assert one["student"] == other["student"]


def test_the_run_directory_of_a_composed_recipe_is_that_of_its_name(tmp_path: Path) -> None:
    name = "standard/resnet56-resnet20/kd"
    folder = run_folder(name, tmp_path, 3)
    assert recipe_name(find_recipe(name)) == name
    assert folder == tmp_path / "standard" / "resnet56-resnet20" / "kd" / "seed3"
    assert recipe_of_run(folder, tmp_path) == name
    assert recipe_of_run(tmp_path / "standard" / "resnet56-resnet20" / "no" / "seed3", tmp_path) is None


@pytest.mark.parametrize("name", ["standard/resnet56-resnet20/kdd", "standard/resnet56-resnet20"])
def test_what_is_no_row_of_a_pair_is_no_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no recipe '{name}'.*nearest"):
        find_recipe(name)


def test_of_several_bases_the_later_lie_over_the_earlier(tmp_path: Path) -> None:
    pair = """
        description: small from large
        published: 50.0
        student: {name: cifar_resnet20}
        method: {name: kd, temperature: 8.0}
        train: {lr: 0.01, epochs: 3}
        recipes: {kd: {published: 51.0}}
        """
    method = """
        description: "{base}, DKD"
        method: {name: dkd, beta: 2.0}
        train: {lr: 0.02}
        """
    (tmp_path / "pair.yaml").write_text(dedent(pair))
    (tmp_path / "dkd.yaml").write_text(dedent(method))
    (tmp_path / "mine.yaml").write_text("base: [pair.yaml, dkd.yaml]\ntrain: {epochs: 4}\n")
    assert load_recipe(tmp_path / "mine.yaml") == {
        "description": "small from large, DKD",
        "student": {"name": "cifar_resnet20"},
        "train": {"lr": 0.02, "epochs": 4},
        "method": {"name": "dkd", "beta": 2.0},  # KD's temperature is not DKD's
    }


def test_a_base_may_be_a_packaged_recipe_or_a_part_of_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: [standard/_pairs/resnet56-resnet20, standard/_methods/dkd]\n")
    (tmp_path / "same.yaml").write_text("base: standard/resnet56-resnet20/dkd\n")
    composed = options_of("standard/resnet56-resnet20/dkd")
    del composed["published"]
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(tmp_path / "same.yaml") == composed


@pytest.mark.parametrize("base", ["3", "[a.yaml, 3]", "{a: b}"])
def test_bases_are_names(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match="base must be a recipe or a list of recipes, not"):
        load_recipe(tmp_path / "mine.yaml")


def test_options_read_from_a_packaged_recipe_are_the_readers_own() -> None:
    before = recorded("standard/resnet56-resnet20/kd")
    options_of("standard/resnet56-resnet20/kd")["train"]["milestones"].append(1)
    assert recorded("standard/resnet56-resnet20/kd") == before


@pytest.mark.parametrize("recipe", sorted({*RECIPES} - {*RUN}))
def test_what_is_not_run_differs_from_what_is_in_models_and_values(recipe: str) -> None:
    """Of the same method file."""
    way = way_of(recipe)
    options, other = options_of(recipe), options_of(next(run for run, parts in RUN.items() if way in parts))
    assert options.keys() - {"published"} == other.keys() - {"published"}
    assert options["method"].keys() == other["method"].keys()
    assert options.get("hint", {}).get("name") == other.get("hint", {}).get("name")
    assert parse_run("distill", [recipe]).method == other["method"]["name"]


@pytest.mark.parametrize("recipe", RUN)
def test_recipe_runs_two_steps(recipe: str, images: Path, runs: Path, tmp_path: Path) -> None:
    options = [*SHORT, f"--runs={runs}", f"--output={tmp_path / 'run'}"]
    digits = recipe.startswith("digits")
    if digits:
        options += ["--data.limit_train=20", "--data.limit_test=10"]
    elif recipe.startswith("imagenet"):
        options += [*SMALL, f"--data.root={images}", *(TEACHER if not recipe.endswith("/ce") else [])]
    else:
        # The regions of SDD need maps of some places, which these students do not have at 16x16.
        side = 32 if recipe.endswith("v2/sdd") else 16
        options += [
            "--data.name=folder",
            f"--data.root={images}",
            f"--data.image_size={side}",
            "--data.validation=0.34",
        ]
        options += ["--data.augment.crop_padding=2", "--data.augment.cutout=4"]
    config = parse_run("distill", [recipe, *options])
    if config.data.unlabelled is not None:
        options += ["--data.limit_train=10", "--data.limit_unlabelled=10"]
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
