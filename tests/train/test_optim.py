"""Schedules of the learning rate, update by update."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch

from disk_kd.errors import ConfigError
from disk_kd.train import TrainSettings
from disk_kd.train.optim import make_optimizer, make_scheduler


def rates(passes: int, steps_per_pass: int, **settings: Any) -> list[float]:
    chosen = TrainSettings(lr=1.0, optimizer="momentum", **settings)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), chosen)
    scheduler = make_scheduler(optimizer, chosen, passes, steps_per_pass)
    found = []
    for update in range(passes * steps_per_pass):
        scheduler.step(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_multistep_falls_at_its_milestones() -> None:
    found = rates(5, 3, schedule="multistep", milestones=(2, 4), decay=0.1)
    assert found == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 3)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "multistep"])
def test_a_warm_up_takes_half_of_the_passes_at_most(schedule: str) -> None:
    found = rates(4, 10, schedule=schedule, warmup_passes=50, milestones=(4,))
    assert found[:20] == sorted(found[:20])
    assert found[20] >= 0.49
    assert found[10] == pytest.approx(0.505)


def test_cosine_falls_to_its_end_and_begins_again() -> None:
    found = rates(4, 10, cycles=2)
    assert found[0] == found[20] == 1.0
    assert found[:20] == pytest.approx(found[20:])
    assert all(a > b for a, b in itertools.pairwise(found[:20]))


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("tanh", 0.99), ("constant", 1.0)])
def test_schedules_by_name(schedule: str, middle: float) -> None:
    found = rates(4, 10, schedule=schedule)
    assert found[0] == pytest.approx(1.0, abs=0.01)
    assert found[20] == pytest.approx(middle, abs=0.02)
    assert found[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=0.15)


def test_layer_decay_slows_the_first_layers() -> None:
    settings = TrainSettings(optimizer="adamw", lr=1.0, layer_decay=0.5)
    scales = [group["lr_scale"] for group in make_optimizer(timm.create_model("test_vit"), settings).param_groups]
    assert min(scales) < 0.1 < max(scales) == 1.0
    with pytest.raises(ConfigError, match="layer_decay needs the layers of a timm model in order, Linear"):
        make_optimizer(torch.nn.Linear(1, 1), settings)
    with pytest.raises(ConfigError, match="layer_decay must be above 0"):
        TrainSettings(layer_decay=2.0)


def test_optimisers_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ConfigError, match="adahessian takes second derivatives; give another, as sgd"):
        make_optimizer(torch.nn.Linear(1, 1), TrainSettings(optimizer="adahessian"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"fusedadam cannot be used here: .*; give another"):
            make_optimizer(torch.nn.Linear(1, 1), TrainSettings(optimizer="fusedadam"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "multistep"}, "multistep needs train.milestones"),
        ({"schedule": "multistep", "milestones": (0, 3)}, r"passes from 1 on, not \[0, 3\]"),
        ({"decay": 0.0}, "train.decay must be above 0"),
    ],
)
def test_bad_schedules_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**settings)
