"""Compilation: tried without a trace, kept where it pays, left with one warning where it does not."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import nn

from disk_kd import Cosine, DiSKTask
from disk_kd.cli import main
from disk_kd.data import Loader, load_dataset
from disk_kd.hints import HINTS, Context
from disk_kd.tasks import METHODS, StudentTask, plan_epochs
from disk_kd.training import Display, TrainSettings, TrainStep, compile_where_it_pays, compiling
from disk_kd.training.state import task_state


@pytest.fixture
def loader() -> Loader:
    return Loader(load_dataset("digits", limit_train=40).train, batch_size=20, mean=(0.5,), std=(0.5,))


def make_step(**settings: Any) -> TrainStep:
    torch.manual_seed(0)
    models = (timm.create_model(f"cifar_resnet10_{size}", num_classes=10, in_chans=1) for size in ("xxxs", "xxs"))
    return TrainStep(DiSKTask(*models), TrainSettings(batch_size=20, **settings))


def slow_compile(delay_s: float) -> Callable[..., Any]:
    """A compiler whose result takes that much longer than the function itself."""

    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            time.sleep(delay_s)
            return function(*arguments)

        return run

    return compile


def decide(step: TrainStep, loader: Loader, steps: int = 1000) -> tuple[bool, list[str]]:
    said: list[str] = []
    phases = list(dict.fromkeys(plan_epochs(step.task.phases, 1)))
    return compile_where_it_pays(step, loader, phases, steps, said.append), said


def test_a_short_run_is_not_compiled_and_hears_nothing(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert decide(make_step(), loader, steps=10) == (False, [])


def test_a_slower_step_is_left_with_one_warning(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "worth_trying_s", lambda module: 0.0)
    monkeypatch.setattr(torch, "compile", slow_compile(0.2))
    compiled, said = decide(make_step(), loader)
    assert not compiled
    begins, warning = said
    assert begins.startswith("Compiling student and loss")
    assert "instead of" in warning


def test_a_faster_step_is_kept(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "worth_trying_s", lambda module: 0.0)
    monkeypatch.setattr(torch, "compile", slow_compile(0.0))
    slow = make_step()
    eager = slow._eager
    slow._eager = lambda *arguments: (time.sleep(0.2), eager(*arguments))[1]  # type: ignore[method-assign]
    # what is compiled is the function without the delay
    monkeypatch.setattr(torch, "compile", lambda function, **options: eager)
    compiled, said = decide(slow, loader)
    assert compiled
    assert re.match(r"Compiled in 0 s; a step then takes [\d.]+ ms instead of 2\d\d\.\d ms", said[1]), said


def test_a_compilation_that_takes_long_is_told_meanwhile(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "TOLD_EVERY_S", 0.05)
    monkeypatch.setattr(torch, "compile", slow_compile(0.3))
    compiled, said = decide(make_step(compile=True), loader)
    assert compiled
    assert said[0].startswith("Compiling student and loss")
    assert said[1] == "Still compiling after 0 s"
    assert said[-1].startswith("Compiled in ")


def test_a_trial_that_does_not_pay_compiles_one_phase(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "worth_trying_s", lambda module: 0.0)
    monkeypatch.setattr(torch, "compile", slow_compile(0.1))
    models = (timm.create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1) for _ in range(2))
    step = TrainStep(DiSKTask(*models, helper="teacher-map"), TrainSettings(batch_size=20))
    met: list[str] = []
    set_phase = step.task.set_phase
    monkeypatch.setattr(step.task, "set_phase", lambda name: (met.append(str(name)), set_phase(name))[1])
    phases = step.task.phases
    assert len(phases) == 2
    assert not compile_where_it_pays(step, loader, phases, 1000, lambda text: None)
    (student,) = (phase.name for phase in phases if phase.trains_student)
    assert set(met) == {student, "None"}


def test_a_large_model_is_tried_only_in_a_run_that_earns_it_back() -> None:
    small = timm.create_model("cifar_resnet10_s", num_classes=10)
    assert compiling.worth_trying_s(small) == compiling.WORTH_TRYING_S
    assert compiling.worth_trying_s(torch.nn.Sequential(*[torch.nn.ReLU() for _ in range(200)])) == 1000.0


@pytest.mark.parametrize("compile", ["auto", True])
def test_a_compiler_that_fails_is_left_with_one_warning(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, compile: str | bool
) -> None:
    def broken(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            raise RuntimeError("no C++ compiler\nwith a long story")

        return run

    monkeypatch.setattr(compiling, "worth_trying_s", lambda module: 0.0)
    monkeypatch.setattr(torch, "compile", broken)
    step = make_step(compile=compile)
    compiled, said = decide(step, loader)
    assert not compiled
    assert said[1:] == ["warning: torch.compile failed (RuntimeError: no C++ compiler); going on without"]
    assert step.gradients(next(loader.batches(0)))["loss"].isfinite()


def test_the_trial_leaves_no_trace(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "worth_trying_s", lambda module: 0.0)
    monkeypatch.setattr(torch, "compile", slow_compile(0.0))
    step = make_step()
    before, random = {k: v.clone() for k, v in task_state(step.task).items()}, torch.get_rng_state()
    decide(step, loader)
    for name, value in task_state(step.task).items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in step.task.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_compiled_run_follows_the_eager_one_and_resumes_as_it_was(
    tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, broken = tmp_path / "teacher", tmp_path / "broken"
    assert main(["train", *tiny, f"--output={teacher}"]) == 0
    options = [f"--teacher.weights={teacher}", "--teacher.name=cifar_resnet10_xxxs", f"--runs={tmp_path}"]
    command = ["distill", *tiny, *options, "--method=disk", "--train.log_every=1", "--train.checkpoint_every_s=0"]
    losses = {}
    for compile in ("false", "true"):
        run = tmp_path / compile
        assert main([*command, f"--train.compile={compile}", f"--output={run}"]) == 0
        losses[compile] = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert yaml.safe_load((run / "config.yaml").read_text())["train"]["compile"] is (compile == "true")
    found, expected = ([loss for loss in losses[key] if loss is not None] for key in ("true", "false"))
    assert found == pytest.approx(expected, rel=1e-3)

    def stop(display: Display, done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    command = [*command, "--train.compile=true", f"--output={broken}"]
    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stop)
        assert main(command) == 130
    assert not (broken / "student.safetensors").exists()
    assert main([*command, "--resume"]) == 0
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (broken / name).read_bytes() == (tmp_path / "true" / name).read_bytes()


def small(width: int) -> nn.Module:
    """One layer, which a compiler is through with in no time, for methods that read nothing but logits."""
    body = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(width, 10))


def make_task(method: str, hint: str | None, phase: str | None = None, **options: Any) -> StudentTask:
    torch.manual_seed(0)
    student, teacher = small(4), small(6)
    if hint is not None or options or method in ("ce", "disk", "feature") or method.startswith("timm"):
        sizes = ("xxxs", "xxs")
        student, teacher = (timm.create_model(f"cifar_resnet10_{s}", num_classes=10, in_chans=1) for s in sizes)
    if hint is not None:
        student = HINTS[hint].prepare(student, teacher, {})
    task = METHODS[method](student) if method == "ce" else METHODS[method](student, teacher, **options)
    if hint is not None:
        context = Context(
            student, teacher, in_chans=1, image_size=8, teacher_image_size=8, targets=torch.arange(2000) % 10
        )
        task.add_hint(HINTS[hint](context, **HINT_OPTIONS[hint]), teacher)
    task.set_phase(phase)
    return task.train()


HINT_OPTIONS: dict[str, dict[str, Any]] = {
    "fitnet": {},
    "crd": {"negatives": 64, "dimensions": 8},
    "reviewkd": {},
    "simkd": {},
}
"""Of the hints with buffers, which a step changes."""
SCHEDULED = {"variant": "paper", "student_epochs": 1, "budget": Cosine(0.6, 0.4, 4), "price": Cosine(1.0, 5.0, 4)}
CASES: list[tuple[str, str | None, dict[str, Any]]] = [
    *((name, None, {}) for name in METHODS if name != "timm-token"),
    *(("ce", hint, {}) for hint in HINT_OPTIONS),
    ("disk", None, {"helper": "teacher-map", "price": 1.0}),
    ("disk", None, {"variant": "imagenet"}),
    *(("disk", None, {**SCHEDULED, "phase": phase}) for phase in ("student", "helper")),
]


@pytest.mark.parametrize(("method", "hint", "options"), CASES)
def test_a_compiled_step_has_the_gradients_of_an_eager_one(
    method: str, hint: str | None, options: dict[str, Any], loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the loss reads what the step moves: a warm-up, a price, a memory.

    The backend parts forward and backward as inductor does, which computes what is cheap again in the backward pass.
    """
    torch.compiler.reset()  # else the many cases reach the limit of recompilations, and run eagerly
    compile = partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, mode: compile(function, dynamic=dynamic))
    found = {}
    for compiled in (False, True):
        task = make_task(method, hint, **options)
        step = TrainStep(task, TrainSettings(batch_size=20, compile=compiled))
        steps = [step.gradients(batch) for batch in loader.batches(0)]
        gradients = [p.grad for p in task.trainable_module.parameters() if p.grad is not None]
        found[compiled] = steps, torch.cat([gradient.flatten() for gradient in gradients])
    assert len(steps) == 2
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-3, atol=1e-5)
    gap = torch.linalg.vector_norm(found[True][1] - found[False][1])
    assert gap < 1e-4 * torch.linalg.vector_norm(found[False][1])
