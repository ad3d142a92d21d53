from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.utils import unwrap_model
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from disk_kd import CETask, KDTask
from disk_kd.errors import ConfigError
from disk_kd.losses import kd_loss
from disk_kd.tasks import METHODS


def models(classes: int = 5) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(timm.create_model(f"cifar_resnet10_{name}", num_classes=classes) for name in ("xxxs", "xs"))


X, Y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5


def test_cross_entropy_task_is_smoothed_cross_entropy() -> None:
    student, _ = models()
    result = CETask(student, label_smoothing=0.2)(X, Y)
    assert torch.equal(result["loss"], nn.functional.cross_entropy(result["output"], Y, label_smoothing=0.2))


def test_kd_task_is_its_formula() -> None:
    student, teacher = models()
    task = KDTask(student, teacher, temperature=2.0, teacher_temperature=3.0, kd_weight=0.7, ce_weight=0.2)
    result = task(X, Y)
    kd = kd_loss(result["output"], task.teacher(X)["logits"], student_temperature=2.0, teacher_temperature=3.0)
    assert torch.allclose(result["loss"], 0.2 * nn.functional.cross_entropy(result["output"], Y) + 0.7 * kd)
    assert torch.equal(result["kd_loss"], kd)


def test_no_gradient_and_no_mode_reaches_the_teacher() -> None:
    task = KDTask(*models())
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task.train()
    task(X, Y)["loss"].backward()
    assert not any(module.training for module in task.teacher.modules())
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())


def test_stored_outputs_are_used_and_needed_without_a_teacher() -> None:
    task = KDTask(*models())
    task.eval()
    online = task(X, Y)["loss"]
    stored = task.teacher(X)
    task.teacher = None
    assert torch.equal(task(X, Y, stored)["loss"], online)
    with pytest.raises(ConfigError, match="neither a teacher nor stored outputs"):
        task(X, Y)


def test_compiled_student_computes_the_same_and_stays_plain() -> None:
    student, teacher = models()
    task = KDTask(student, teacher)
    task.eval()
    eager = task(X, Y)["loss"]
    task.compile(backend="aot_eager")
    assert torch.allclose(task(X, Y)["loss"], eager, rtol=1e-5)
    assert task.student is student


@pytest.mark.parametrize("name", [name for name in METHODS if name != "timm-token"])
def test_every_method_averages_weights_by_timm(name: str) -> None:
    student, teacher = models()
    task = METHODS[name](student) if name == "ce" else METHODS[name](student, teacher)
    task.setup_ema(decay=0.5)
    before = student.linear.weight.detach().clone()
    with torch.no_grad():
        student.linear.weight.add_(1)
    task.update_ema()
    averaged = unwrap_model(task.get_eval_model(ema=True)).linear.weight
    assert torch.allclose(averaged, before + 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number, not 0.0"),
        ({"teacher_temperature": -2.0}, "teacher_temperature must be a positive number"),
        ({"kd_weight": -0.1}, "kd_weight must be a number not below 0"),
        ({"ce_weight": float("inf")}, "ce_weight must be a number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KDTask(*models(), **settings)


def test_a_compiled_student_stays_compiled_under_data_parallel(tmp_path: Path) -> None:
    student, teacher = models()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    try:
        task = KDTask(student, teacher)
        task.compile(backend="aot_eager")
        task.prepare_distributed()
        assert isinstance(task.trainable_module, OptimizedModule)
        assert task.student is student
        task(X, Y)["loss"].backward()
        assert student.linear.weight.grad is not None
    finally:
        dist.destroy_process_group()
