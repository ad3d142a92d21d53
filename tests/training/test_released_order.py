"""The released order of a run: its phases, and price, budget and learning rate in each of their steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch

from disk_kd import Cosine, DiSKTask
from disk_kd.cli import main
from disk_kd.tasks import plan_epochs
from disk_kd.tasks.schedule import scheduled
from disk_kd.training import TrainSettings
from disk_kd.training.optim import make_optimizer, make_schedule

Row = tuple[str, float, float, float]
"""Phase, price, budget and learning rate of a step."""


def between(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def assert_rows(found: list[Row], expected: list[Row]) -> None:
    assert [row[0] for row in found] == [row[0] for row in expected]
    for column in (1, 2, 3):
        assert [row[column] for row in found] == pytest.approx([row[column] for row in expected], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_two_hundred_epochs_have_the_released_schedules(decay: float) -> None:
    steps = 2
    expected = [("helper", 1.0, 0.6, between(0.1, 0.03, step / (5 * steps))) for step in range(5 * steps)]
    for epoch in range(200):
        price = between(1.0, 5.0, epoch % 50 / 50)
        budget = between(0.6 * decay ** (epoch // 20), 0.4, epoch % 20 / 20)
        updates = range(3 * steps * epoch, 3 * steps * (epoch + 1))
        for phase in ("student", "helper"):
            expected += [(phase, price, budget, between(0.1, 0.0, u % (150 * steps) / (150 * steps))) for u in updates]
    price_of_epoch = [row[1] for row in expected[5 * steps :: 6 * steps]]
    assert price_of_epoch[49:51] == pytest.approx([4.996, 1.0], abs=1e-3)

    models = (timm.create_model(f"cifar_resnet10_{size}", num_classes=10) for size in ("xxxs", "xxs"))
    task = DiSKTask(*models, variant="paper", budget=Cosine(0.6, 0.4, 60, decay), steps_per_epoch=steps)
    plan = plan_epochs(task.phases, 600)
    settings = TrainSettings(epochs=600, cycles=4, lr=0.1)
    optimizers = {phase: make_optimizer(torch.nn.Linear(1, 1), settings) for phase in task.phases}
    rates = {
        phase: make_schedule(optimizers[phase], settings, phase, plan.count(phase), steps) for phase in task.phases
    }
    updates = {phase: -phase.warmup_epochs * steps for phase in task.phases}
    found = []
    for phase in plan:
        task.set_phase(phase.name)
        for _ in range(steps):
            rates[phase](updates[phase])
            values = [scheduled(value, task.clock()).item() for value in (task.settings.price, task.settings.budget)]
            found.append((phase.name, *values, optimizers[phase].param_groups[0]["lr"]))
            updates[phase] += 1
            task.step += phase.trains_student
    assert_rows(found, expected)
    counts = {phase.name: plan.count(phase) for phase in task.phases}
    assert counts == {"student": 600, "helper": 605}


def test_a_run_s_log_shows_them(tiny: Sequence[str], tmp_path: Path) -> None:
    """Two rounds and the first epoch of a third, each step in two micro-batches."""
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert main(["train", *tiny, "--train.epochs=1", f"--output={teacher}"]) == 0
    learn = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}", f"--output={run}"]
    method = ["--method=disk", "--method.variant=paper", "--method.helper=teacher-pooled"]
    method += ["--method.student_epochs=2", "--method.helper_epochs=1", "--method.helper_warmup_epochs=2"]
    method += ["--method.price={start: 1, end: 5, period: 6}"]
    method += ["--method.budget={start: 0.6, end: 0.4, period: 2, start_decay: 0.9}"]
    length = ["--train.epochs=5", "--train.lr=0.1", "--train.accumulate=2", "--train.evaluate_every=4"]
    assert main(["distill", *tiny, *learn, *method, *length, "--train.log_every=1"]) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    steps = 5
    expected = [("helper", 1.0, 0.6, between(0.1, 0.03, step / (2 * steps))) for step in range(2 * steps)]
    updates = {"student": 0, "helper": 0}
    for number, epochs in enumerate((["student"] * 2 + ["helper"], ["student"] * 2 + ["helper"], ["student"])):
        for phase in epochs:
            length_of_phase = {"student": 5, "helper": 2}[phase] * steps
            for _ in range(steps):
                rate = between(0.1, 0.0, updates[phase] / length_of_phase)
                expected.append((phase, between(1.0, 5.0, 2 * number / 6), 0.6 * 0.9**number, rate))
                updates[phase] += 1
    found = [tuple(line[name] for name in ("phase", "price", "budget", "lr")) for line in logged if "lr" in line]
    assert_rows(found, expected)
    assert [line["student_epochs"] for line in logged if line["kind"] == "validation"] == [4, 5]


def test_a_student_that_helper_epochs_left_alone_is_not_evaluated_again(tiny: Sequence[str], tmp_path: Path) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert main(["train", *tiny, "--train.epochs=1", f"--output={teacher}"]) == 0
    learn = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}", f"--output={run}"]
    method = ["--method=disk", "--method.helper=teacher-pooled", "--method.helper_epochs=2"]
    assert main(["distill", *tiny, *learn, *method, "--train.epochs=3", "--train.evaluate_every=2"]) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["student_epochs"] for line in logged if line["kind"] == "validation"] == [2, 3]
    assert [line["phase"] for line in logged if line["kind"] == "train"][-1] == "helper"
    assert json.loads((run / "summary.json").read_text())["end"]["phase"] == "student"
