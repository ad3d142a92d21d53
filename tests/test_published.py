"""A published number stands beside the settings that it was published for, and beside no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from disk_kd.arguments import parse_run
from disk_kd.comparison import Plan
from disk_kd.recipe import load_recipe

RECIPE = "cifar100/resnet10_s/resnet10_l-kd"
NUMBER = 54.92


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--data.root=elsewhere", "--data.workers=2", "--data.download=true"),
        ("--train.seed=3", "--train.device=cpu", "--train.log_every=10", "--train.compile=false"),
        ("--teacher.weights=released.safetensors", "--student.weights=start.safetensors"),
        ("--teacher.store=true", "--output=there", "--description=mine"),
        ("--method=kd",),
        ("--train.epochs=600",),
    ],
)
def test_it_stays_where_the_experiment_is_the_same(options: tuple[str, ...]) -> None:
    assert parse_run("distill", [RECIPE, *options]).published == NUMBER


@pytest.mark.parametrize(
    "options",
    [
        ("--data.name=cifar10",),
        ("--data.limit_train=50",),
        ("--data.views=40",),
        ("--data.augment.cutout=0",),
        ("--student.name=cifar_resnet10_xs",),
        ("--student.weights=null",),
        ("--teacher.name=cifar_resnet18",),
        ("--method=dkd",),
        ("--method.temperature=2",),
        ("--hint=fitnet",),
        ("--train.epochs=1",),
        ("--train.weight_decay=0",),
        ("--train.batch_size=100",),
    ],
)
def test_it_goes_with_any_change_of_data_models_method_or_training(options: tuple[str, ...]) -> None:
    config = parse_run("distill", [RECIPE, *options])
    assert config.published is None
    assert "published: null" in config.to_yaml()


def test_a_number_that_the_user_gives_is_his() -> None:
    assert parse_run("distill", [RECIPE, "--train.epochs=1", "--published=50"]).published == 50


def test_a_recipe_does_not_inherit_it(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("published: 50.0\ntrain: {epochs: 3}\n")
    (tmp_path / "above.yaml").write_text("base: below.yaml\ntrain: {epochs: 1}\n")
    assert "published" not in load_recipe(tmp_path / "above.yaml")
    assert load_recipe(tmp_path / "below.yaml")["published"] == 50


def test_rows_of_a_comparison_follow(tmp_path: Path) -> None:
    def published(options: dict[str, Any], own: dict[str, Any] | None = None) -> float | None:
        return Plan(tmp_path, options).cell(RECIPE, 1, own or {}).config.published

    assert published({"data": {"root": "d"}}) == NUMBER
    assert published({"train": {"epochs": 2}}) is None
    assert published({}, {"train": {"lr": 0.2}}) is None
    assert published({}, {"data": {"name": "digits"}}) is None


def test_a_run_begun_again_from_its_own_file_keeps_it(tmp_path: Path) -> None:
    config = parse_run("distill", [RECIPE, "--data.root=d"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = str(tmp_path / "config.yaml")
    assert parse_run("distill", [again]).published == NUMBER
    assert parse_run("distill", [again, "--train.epochs=2"]).published is None
