"""Models as they come in loops of one's own: outputs of other forms, replaced heads, shared weights, masked classes."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from disk_kd import DiSKTask, KDTask
from disk_kd.errors import ModelError
from disk_kd.hints import Context, FitNetHint, StudentAndHint
from disk_kd.logits import class_count, logits_of
from disk_kd.losses import (
    abkd_loss,
    dist_loss,
    dkd_loss,
    gce_loss,
    jensen_shannon_loss,
    kd_loss,
    mlkd_loss,
    nkd_loss,
    rld_loss,
    scaffolded_kl,
    scaffolded_nll,
    sdd_loss,
    skd_loss,
    ttm_loss,
    wkd_loss,
    wttm_loss,
)
from disk_kd.metrics import evaluate
from disk_kd.models import check_logits
from disk_kd.tasks import METHODS, StudentTask
from disk_kd.teacher import Teacher
from disk_kd.training.optim import make_optimizer
from disk_kd.training.settings import TrainSettings

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 1])


class Named(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


FORMS: dict[str, Any] = {
    "tuple": lambda z: (z, [z]),
    "list": lambda z: [z, -z],
    "auxiliary": lambda z: Named(z, -z),
    "mapping": lambda z: {"logits": z, "loss": None},
    "object": lambda z: SimpleNamespace(logits=z),
    "tuple of objects": lambda z: (SimpleNamespace(logits=z), None),
}


class Gives(nn.Module):
    """A classifier whose logits come in another form."""

    def __init__(self, form: str, size: str = "xxxs") -> None:
        super().__init__()
        self.net, self.form = network(size), form

    def forward(self, x: Tensor) -> Any:
        return FORMS[self.form](self.net(x))


def network(size: str = "xxxs", classes: int = 3) -> Any:
    torch.manual_seed(0)
    return timm.create_model(f"cifar_resnet10_{size}", num_classes=classes)


def test_the_logits_are_found_in_every_form() -> None:
    logits = torch.zeros(2, 3)
    for form in FORMS.values():
        assert logits_of(form(logits), nn.Identity()) is logits
    for other in ({"out": logits}, (), None, SimpleNamespace(logits=None), [[]]):
        with pytest.raises(ModelError, match=r"Linear returns a .* without logits; let it return a tensor of logits"):
            logits_of(other, nn.Linear(1, 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["kd", "ce", "disk"])
def test_a_task_reads_the_logits_of_student_and_teacher(name: str, form: str) -> None:
    plain, other = network(), Gives(form)
    teacher = network("xxs")
    expected = make(name, plain, teacher)(IMAGES, TARGETS)["loss"]
    assert make(name, other, teacher)(IMAGES, TARGETS)["loss"] == expected
    assert make(name, plain, Gives(form, "xxs"))(IMAGES, TARGETS)["loss"] == expected


def make(name: str, student: nn.Module, teacher: nn.Module) -> StudentTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {"helper": 0.1, "top_k": 2} if name == "disk" else {}
    return (METHODS[name](student) if name == "ce" else METHODS[name](student, teacher, **options)).eval()


def test_runs_check_and_evaluate_such_models() -> None:
    check_logits(Gives("tuple"), (3, 16, 16), 3)
    batches = [(IMAGES, TARGETS.int())]
    expected = evaluate(network(), batches, device="cpu", num_classes=3)
    assert evaluate(Gives("object"), batches, device="cpu", num_classes=3) == expected


def test_timms_tasks_say_what_they_cannot_train() -> None:
    with pytest.raises(ModelError, match="Sequential does not say how its images are normalised"):
        METHODS["timm-logits"](nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), network())
    student: Any = Gives("object")
    student.pretrained_cfg = student.net.pretrained_cfg
    with pytest.raises(ModelError, match=r"timm's task cannot train Gives .*; take kd or another method"):
        METHODS["timm-logits"](student, network())(IMAGES, TARGETS)


@pytest.mark.parametrize("name", ["kd", "ce", "disk", "timm-logits"])
def test_labels_of_every_integer_type(name: str) -> None:
    task = make(name, network(), network("xxs")) if name != "timm-logits" else METHODS[name](network(), network("xxs"))
    task.eval()
    losses = {task(IMAGES, TARGETS.to(dtype))["loss"].item() for dtype in (torch.int64, torch.int32, torch.uint8)}
    assert len(losses) == 1


def test_images_without_labels_leave_the_labels_loss_out() -> None:
    none = torch.full((4,), -100)
    task = KDTask(network(), network("xxs"), ce_weight=0.5, kd_weight=1.0)
    result = task(IMAGES, none)
    assert result["ce_loss"] == 0
    result["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.student.parameters())
    assert METHODS["ce"](network(), label_smoothing=0.1)(IMAGES, none)["loss"] == 0
    assert task(IMAGES, torch.tensor([0, -100, -100, -100]))["ce_loss"] > 0


def head(classes: int) -> Any:
    model = timm.create_model("resnet10t")
    model.fc = nn.Linear(512, classes)
    return model


def test_the_classifier_tells_the_classes() -> None:
    model = head(10)
    assert (model.num_classes, class_count(model)) == (1000, 10)
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 7), nn.Identity())
    assert class_count(model) == 7
    assert class_count(nn.Linear(2, 3)) is None
    KDTask(head(10), timm.create_model("resnet10t", num_classes=10))(IMAGES, TARGETS)["loss"].backward()
    DiSKTask(head(3), head(3))(IMAGES, TARGETS)["loss"].backward()
    with pytest.raises(ModelError, match="teacher has 10 classes, the student 3"):
        KDTask(head(3), head(10))


def test_a_student_that_was_evaluated_trains() -> None:
    student = network().eval()
    KDTask(student, network("xxs"))(IMAGES, TARGETS)
    assert student.training
    assert student.bn1.num_batches_tracked == 1
    student.bn1.eval()
    assert not KDTask(student, network("xxs")).student.bn1.training


@pytest.mark.parametrize("frozen_before", [False, True])
def test_weights_that_teacher_and_student_share_are_refused(frozen_before: bool) -> None:
    student, model = network(), network()
    student.linear = model.linear
    teacher = Teacher.of(model, student) if frozen_before else model
    with pytest.raises(ModelError, match=r"teacher and student share linear.weight, .*copy.deepcopy\(teacher\)"):
        KDTask(student, teacher)
    KDTask(student, copy.deepcopy(teacher))
    KDTask(student, Teacher.of(model, student, fold=True))


MASKED: dict[str, Any] = {
    "kd": lambda s, t, y: kd_loss(s, t, student_temperature=1.0, teacher_temperature=4.0),
    "dkd": lambda s, t, y: dkd_loss(s, t, y, alpha=1.0, beta=8.0, temperature=4.0),
    "nkd": lambda s, t, y: nkd_loss(s, t, y, gamma=1.5, temperature=1.0),
    "ttm": lambda s, t, y: ttm_loss(s, t, temperature=4.0),
    "wttm": lambda s, t, y: wttm_loss(s, t, temperature=4.0),
    "rld": lambda s, t, y: rld_loss(s, t, y, alpha=1.0, beta=8.0, temperature=4.0),
    "wkd": lambda s, t, y: wkd_loss(s, t, y, 1 - torch.eye(6), weight=30.0, temperature=2.0),
    "wkd-joint": lambda s, t, y: wkd_loss(s, t, None, 1 - torch.eye(6), weight=30.0, temperature=2.0),
    "abkd": lambda s, t, y: abkd_loss(s, t, alpha=0.8, beta=0.3, temperature=4.0),
    "gce": lambda s, t, y: gce_loss(s, t, power=0.3, temperature=2.0),
    "jsd": lambda s, t, y: jensen_shannon_loss(s, t, student_temperature=1.0, teacher_temperature=1.0),
    "dist": lambda s, t, y: dist_loss(s, t, inter_weight=2.0, intra_weight=2.0, temperature=4.0),
    "mlkd": lambda s, t, y: mlkd_loss(
        s, t, instance_weight=1.0, batch_weight=1.0, class_weight=1.0, temperatures=[1.0, 4.0]
    ),
    "skd": lambda s, t, y: skd_loss(s, t, instance_weight=1.0, direction_weight=1.0, temperature=4.0, tikhonov=0.1),
    "sdd": lambda s, t, y: sdd_loss(s[:, None], t[:, None], beta=2.0, temperature=4.0),
    "disk": lambda s, t, y: scaffolded_kl(
        s, t, y, torch.full((4,), 0.2), top_k=3, student_temperature=1.0, teacher_temperature=1.0
    ),
    "disk-released": lambda s, t, y: scaffolded_nll(
        s, t, y, torch.full((4,), 0.2), top_k=3, student_temperature=1.0, teacher_temperature=1.0
    ),
}


@pytest.mark.parametrize("kept", [1, 4])
@pytest.mark.parametrize("name", MASKED)
def test_a_masked_class_has_probability_zero(name: str, kept: int) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    teacher[:, kept:] = -math.inf
    targets = torch.tensor([0, 1, 5, 0])  # 5 is masked
    loss = MASKED[name](student, teacher, targets)
    (grad,) = torch.autograd.grad(loss, student)
    low = MASKED[name](student, teacher.masked_fill(teacher.isinf(), -1e9), targets)
    assert grad.isfinite().all()
    torch.testing.assert_close(loss, low)


def test_the_reverse_divergence_of_a_masked_class_is_infinite() -> None:
    teacher = torch.tensor([[0.0, -math.inf]])
    keywords = {"student_temperature": 1.0, "teacher_temperature": 1.0, "reverse": 0.5}
    assert kd_loss(torch.zeros(1, 2), teacher, **keywords) == math.inf


def test_timms_task_takes_masked_classes() -> None:
    task = METHODS["timm-logits"](network(), network("xxs"))
    teacher = {"logits": torch.tensor([[0.0, 1.0, -math.inf]]).repeat(4, 1)}
    assert task(IMAGES, TARGETS, teacher)["loss"].isfinite()


def test_a_teacher_that_is_not_finite_is_told() -> None:
    task = KDTask(network(), network("xxs"))
    assert task.unusable_outputs(IMAGES) == []
    assert task.teacher is not None
    task.teacher.model.linear.bias.data[0] = math.inf
    assert task.unusable_outputs(IMAGES) == ["logits"]
    assert METHODS["ce"](network()).unusable_outputs(IMAGES) == []


def groups(module: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Weight decay and learning rate of each parameter, by name."""
    optimizer = create_optimizer_v2(module, "adamw", lr=1.0, weight_decay=0.1, **options)
    of = {
        id(parameter): (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {name: of[id(parameter)] for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.5}])
@pytest.mark.parametrize("method", ["kd", "disk"])
def test_a_hint_or_helper_leaves_the_students_groups_as_they_are(method: str, options: dict[str, float]) -> None:
    sizes = {"num_classes": 10, "in_chans": 1, "img_size": 8, "patch_size": 4}
    student, teacher = (timm.create_model("test_vit", **sizes) for _ in range(2))
    student.pretrained_cfg = teacher.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    expected = groups(student, **options)
    assert expected["pos_embed"][0] == 0
    frozen = Teacher.of(teacher, student)
    chosen: dict[str, Any] = {"variant": "paper", "helper": "teacher-logits"} if method == "disk" else {}
    task = METHODS[method](student, frozen, **chosen)
    task.add_hint(FitNetHint(Context(student, teacher, 1, 8, 8), student_layer="stage0", teacher_layer="stage0"))
    depth = "student." * (1 + (method == "disk"))
    found = groups(task.trainable_module, **options)
    assert {name.removeprefix(depth): value for name, value in found.items() if name.startswith(depth)} == expected
    if options:
        assert {scale for name, (_, scale) in found.items() if not name.startswith(depth)} <= {1.0}
        make_optimizer(task.learner, TrainSettings(optimizer="adamw", layer_decay=0.5))


def test_a_student_that_tells_no_layers_has_none_beside_a_hint() -> None:
    pair = StudentAndHint(nn.Linear(2, 3), nn.Identity())  # type: ignore[arg-type]
    assert pair.no_weight_decay() == set()
    assert not hasattr(pair, "group_matcher")
