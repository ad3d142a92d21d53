"""Numbers that no option can mean are refused; a schedule named over a recipe brings its own settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import timm
import torch
from torch import Tensor, nn

from disk_kd.arguments import parse_run
from disk_kd.errors import ConfigError, DiskKDError
from disk_kd.hints import HINTS
from disk_kd.hints.base import Context
from disk_kd.tasks import METHODS, Cosine
from disk_kd.teacher.settings import TeacherSettings
from disk_kd.training import TrainSettings

ODD = (0, -1, math.nan, math.inf, -math.inf)

FINE = {
    ("TrainSettings", "clip_grad"): {math.inf},
    ("TrainSettings", "checkpoint_every_s"): {math.inf},
    ("Cosine", "start"): {-1},
    ("Cosine", "end"): {-1},
    ("crd", "seed"): {-1},
}
"""Odd values that an option takes, beside 0: no clipping, no checkpoint within an epoch, any curve, any seed."""

ZERO = {
    *(
        "momentum",
        "weight_decay",
        "warmup_epochs",
        "warmup_lr",
        "cooldown_epochs",
        "min_lr",
        "checkpoint_every_s",
        "seed",
        "class_weights_beta",
        "logit_adjustment",
    ),
    *("start", "end"),
}
"""Fields of dataclasses that may be 0."""


def is_number(kind: Any) -> bool:
    return kind in (int, float) or (get_origin(kind) in (Union, UnionType) and any(map(is_number, get_args(kind))))


def takes_whole_numbers_alone(kind: Any) -> bool:
    return kind is int or (kind is not float and float not in get_args(kind))


def odd_fields(settings: type[Any]) -> Iterator[tuple[type[Any], str, float]]:
    kinds = get_type_hints(settings)
    for field in fields(settings):
        if is_number(kinds[field.name]):
            whole = takes_whole_numbers_alone(kinds[field.name])
            yield from ((settings, field.name, value) for value in (ODD[:2] if whole else ODD))


@pytest.mark.parametrize("settings", [TrainSettings, TeacherSettings, Cosine])
def test_every_number_of_the_settings_is_checked(settings: type[Any]) -> None:
    needed = {field.name: 1.0 for field in fields(settings) if field.default is MISSING and is_number(field.type)}
    needed |= {"start": 1.0, "end": 2.0, "period": 3.0} if settings is Cosine else {}
    wrong = []
    for _, name, value in odd_fields(settings):
        fine = value in FINE.get((settings.__name__, name), ()) or (value == 0 and name in ZERO)
        try:
            settings(**needed | {name: value})
            refused = False
        except ConfigError as error:
            refused = name in str(error) and "\n" not in str(error)
        if refused == fine:
            wrong.append((name, value))
    assert not wrong


IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


@cache
def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student, teacher = (timm.create_model("cifar_resnet10_xxxs", num_classes=3) for _ in range(2))
    return student, teacher


def method_loss(name: str) -> Callable[..., Tensor]:
    pair = models()

    def loss(**options: Any) -> Tensor:
        return METHODS[name](*(pair[:1] if name == "ce" else pair), **options)(IMAGES, LABELS)["loss"]

    return loss


def hint_loss(name: str) -> Callable[..., Tensor]:
    student, teacher = models()

    def loss(**options: Any) -> Tensor:
        hint = HINTS[name](Context(student, teacher, 3, 16, 16, LABELS), **options)
        task = METHODS["kd"](student, teacher)
        task.add_hint(hint)
        assert task.teacher is not None
        return task(IMAGES, LABELS, {**task.teacher(IMAGES), "ids": torch.arange(6)})["loss"]

    return loss


# SimKD is a hint of its own student, and the token's task of a transformer; both share their checks with others.
CASES = [*METHODS.keys() - {"timm-token"}, *HINTS.keys() - {"simkd"}]


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_number_of_a_method_is_checked(name: str) -> None:
    of_method = name in METHODS
    loss = method_loss(name) if of_method else hint_loss(name)
    kinds = get_type_hints((METHODS if of_method else HINTS)[name].__init__)
    names = inspect.signature((METHODS if of_method else HINTS)[name]).parameters.keys() - {"steps_per_epoch"}
    wrong: list[Any] = []
    for option in sorted(option for option in names if is_number(kinds[option])):
        for value in ODD[:2] if takes_whole_numbers_alone(kinds[option]) else ODD:
            try:
                result = loss(**{option: value}).item()
                # 0 switches a part off; no other odd value means anything.
                if not math.isfinite(result) or (value != 0 and value not in FINE.get((name, option), ())):
                    wrong.append((option, value, result))
            except DiskKDError as error:
                if "\n" in str(error) or len(str(error)) < 15:
                    wrong.append((option, value, str(error)))
    assert not wrong


MULTISTEP = """
student: {name: cifar_resnet10_xxxs}
published: 70.0
train: {epochs: 40, lr: 0.05, warmup_epochs: 1, schedule: multistep, milestones: [20, 30], decay: 0.2, seed: 3}
"""
COSINE = "train: {epochs: 40, lr: 0.05, cycles: 4, min_lr: 0.001, cooldown_epochs: 4}"


def settings_of(recipe: Path, *options: str) -> TrainSettings:
    return parse_run("train", [str(recipe), *options]).train


@pytest.mark.parametrize("form", [["--train.schedule", "cosine"], ["--train.schedule=cosine"]])
def test_a_schedule_named_over_a_recipe_brings_its_own_settings(form: list[str], tmp_path: Path) -> None:
    (tmp_path / "multistep.yaml").write_text(MULTISTEP)
    train = settings_of(tmp_path / "multistep.yaml", *form)
    assert (train.schedule, train.milestones, train.decay) == ("cosine", (), TrainSettings.decay)
    assert (train.epochs, train.lr, train.warmup_epochs, train.seed) == (40, 0.05, 1, 3)
    assert parse_run("train", [str(tmp_path / "multistep.yaml"), *form]).published is None
    assert settings_of(tmp_path / "multistep.yaml", *form, "--train.cycles=2").cycles == 2


def test_the_recipes_own_schedule_keeps_its_settings(tmp_path: Path) -> None:
    (tmp_path / "multistep.yaml").write_text(MULTISTEP)
    for options in ([], ["--train.schedule=multistep"], ["--train.schedule=cosine", "--train.schedule=multistep"]):
        train = settings_of(tmp_path / "multistep.yaml", *options)
        assert (train.milestones, train.decay) == ((20, 30), 0.2)
    (tmp_path / "cosine.yaml").write_text(COSINE)
    assert settings_of(tmp_path / "cosine.yaml", "--train.schedule=cosine").cycles == 4


def test_what_the_user_says_of_the_new_schedule_stays(tmp_path: Path) -> None:
    (tmp_path / "cosine.yaml").write_text(COSINE)
    train = settings_of(tmp_path / "cosine.yaml", "--train.schedule=multistep", "--train.milestones=[10]")
    assert (train.milestones, train.cycles, train.min_lr, train.cooldown_epochs) == ((10,), 1, 0.0, 0.0)
    (tmp_path / "multistep.yaml").write_text(MULTISTEP)
    with pytest.raises(ConfigError, match=r"train\.milestones need the schedule multistep, not cosine"):
        settings_of(tmp_path / "multistep.yaml", "--train.schedule=cosine", "--train.milestones=[10]")
    with pytest.raises(ConfigError, match=r"schedule multistep needs train\.milestones"):
        settings_of(tmp_path / "cosine.yaml", "--train.schedule=multistep")


def test_a_recipe_over_another_brings_its_own_schedule_and_method(tmp_path: Path) -> None:
    (tmp_path / "multistep.yaml").write_text(MULTISTEP + "method: {name: kd, temperature: 9.0, ce_weight: 0.7}\n")
    above = "base: multistep.yaml\ntrain: {schedule: cosine}\nmethod: {name: jsd, ce_weight: 0.2}\n"
    (tmp_path / "above.yaml").write_text(above)
    run = parse_run("distill", [str(tmp_path / "above.yaml")])
    assert (run.train.milestones, run.train.epochs) == ((), 40)
    assert (run.method_options["temperature"], run.method_options["ce_weight"]) == (2.0, 0.2)
