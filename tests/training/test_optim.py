"""Schedules of the learning rate, update by update."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
from timm.scheduler import create_scheduler_v2

from disk_kd.errors import ConfigError
from disk_kd.tasks import Phase
from disk_kd.training import TrainSettings
from disk_kd.training.optim import make_optimizer, make_schedule, make_scheduler


def rates(epochs: int, steps_per_epoch: int, **settings: Any) -> list[float]:
    chosen = TrainSettings(epochs=epochs, lr=1.0, optimizer="momentum", **settings)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), chosen)
    scheduler = make_scheduler(optimizer, chosen, epochs, steps_per_epoch)
    found = []
    for update in range(epochs * steps_per_epoch):
        scheduler.step(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_multistep_falls_at_its_milestones() -> None:
    found = rates(5, 3, schedule="multistep", milestones=(2, 4), decay=0.1)
    assert found == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 3)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "multistep"])
def test_a_warm_up_takes_half_of_the_passes_at_most(schedule: str) -> None:
    milestones = {"milestones": (4,)} if schedule == "multistep" else {}
    found = rates(4, 10, schedule=schedule, warmup_epochs=50, **milestones)
    assert found[:20] == sorted(found[:20])
    assert found[20] >= 0.49
    assert found[10] == pytest.approx(0.505)


def test_cosine_falls_to_its_end_and_begins_again() -> None:
    found = rates(4, 10, cycles=2)
    assert found[0] == found[20] == 1.0
    assert found[:20] == pytest.approx(found[20:])
    assert all(a > b for a, b in itertools.pairwise(found[:20]))


@pytest.mark.parametrize(("lr", "warmup_lr"), [(0.05, 1e-4), (1e-4, 1e-6)])
def test_cosine_warm_up_and_cooldown_are_timms_over_a_hundred_epochs(lr: float, warmup_lr: float) -> None:
    steps_per_epoch = 7
    shape = {"warmup_lr": warmup_lr, "min_lr": 1e-6}
    settings = TrainSettings(epochs=100, lr=lr, warmup_epochs=3, cooldown_epochs=10, **shape)
    ours, theirs = (make_optimizer(torch.nn.Linear(1, 1), settings) for _ in range(2))
    set_rate = make_schedule(ours, settings, Phase("student"), 100, steps_per_epoch)
    scheduler, epochs = create_scheduler_v2(
        theirs, sched="cosine", num_epochs=90, cooldown_epochs=10, warmup_epochs=3, **shape
    )
    assert epochs == 100
    found, expected = [], []
    for epoch in range(100):
        set_rate(epoch * steps_per_epoch)
        scheduler.step(epoch)
        found.append(ours.param_groups[0]["lr"])
        expected.append(theirs.param_groups[0]["lr"])
    assert found == pytest.approx(expected, rel=1e-9)
    assert (found[0], found[90:]) == (warmup_lr, [1e-6] * 10)


@pytest.mark.parametrize("schedule", ["cosine", "tanh", "linear"])
def test_cycles_share_the_epochs_before_the_cooldown(schedule: str) -> None:
    found = rates(10, 4, schedule=schedule, cycles=2, cooldown_epochs=2.5, min_lr=0.1)
    assert found[0] == found[15] == pytest.approx(1.0, abs=0.01)
    assert min(found[:30]) > 0.1
    assert found[30:] == [0.1] * 10


def test_a_cooldown_is_at_most_half_of_a_run() -> None:
    """So that a recipe of a hundred epochs can be tried for two."""
    found = rates(2, 4, cooldown_epochs=10, min_lr=0.1)
    assert found[4:] == [0.1] * 4
    assert min(found[:4]) > 0.1


def test_a_phase_with_more_passes_cools_down_in_as_large_a_share() -> None:
    settings = TrainSettings(epochs=10, lr=1.0, cooldown_epochs=2, min_lr=0.1)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), settings)
    set_rate = make_schedule(optimizer, settings, Phase("helper"), 20, 3)
    found = []
    for update in range(60):
        set_rate(update)
        found.append(optimizer.param_groups[0]["lr"])
    assert found[47] > 0.1
    assert found[48:] == [0.1] * 12


def test_warm_up_passes_of_a_phase_follow_half_a_cosine_before_its_schedule() -> None:
    settings = TrainSettings(epochs=4, optimizer="adamw", lr=0.1, layer_decay=0.5)
    optimizer = make_optimizer(timm.create_model("test_vit"), settings)
    slowest = min(optimizer.param_groups, key=lambda group: group["lr_scale"])
    for end, expected in ((0.3, [0.1, 0.065]), (1.0, [0.1, 0.1])):
        set_rate = make_schedule(optimizer, settings, Phase("helper", warmup_epochs=2, warmup_end=end), 6, 3)
        found = []
        for update in (-6, -3, 0, 6):
            set_rate(update)
            found.append(slowest["lr"] / slowest["lr_scale"])
        assert found == pytest.approx([*expected, 0.1, 0.05])


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
    with pytest.raises(ConfigError, match="adahessian needs second derivatives; give another, such as sgd"):
        make_optimizer(torch.nn.Linear(1, 1), TrainSettings(optimizer="adahessian"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"fusedadam cannot be used here: .*; give another"):
            make_optimizer(torch.nn.Linear(1, 1), TrainSettings(optimizer="fusedadam"))


def test_momentum_begins_with_zero_where_the_first_step_is_skipped() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(layer, TrainSettings(optimizer="momentum"))
    buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in layer.parameters()]
    assert all(not buffer.any() for buffer in buffers)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
    assert all(torch.allclose(buffer, torch.ones(2), atol=0.01) for buffer in buffers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "multistep"}, "multistep needs train.milestones"),
        ({"schedule": "multistep", "milestones": (0, 3)}, r"epochs from 1 on, not \[0, 3\]"),
        ({"schedule": "cosine", "milestones": (3,)}, "milestones need the schedule multistep, not cosine; give"),
        ({"momentum": 1.0}, "train.momentum must be below 1, not 1.0"),
        (
            {"optimizer": "sgd", "momentum": 0.0},
            "sgd is Nesterov's, which needs train.momentum above 0; give .* momentum",
        ),
        ({"decay": 0.0}, "train.decay must be above 0"),
        ({"min_lr": 0.2}, "train.min_lr must be at most train.lr, 0.1, not 0.2"),
        ({"warmup_lr": 0.2}, "train.warmup_lr must be from 0 to train.lr, 0.1, or null, not 0.2"),
        ({"warmup_lr": -0.1}, "train.warmup_lr must be from 0 to train.lr, 0.1, or null, not -0.1"),
        ({"cooldown_epochs": -1}, "cooldown_epochs must be at least 0, not -1"),
        (
            {"cooldown_epochs": 1, "schedule": "constant"},
            "cooldown_epochs needs the schedule cosine, .* not constant",
        ),
    ],
)
def test_bad_schedules_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**settings)
