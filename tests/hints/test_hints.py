"""Every feature method, alone and with every logit method: shapes, gradients, what stays of the student."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from disk_kd import CETask, DiSKTask, KDTask
from disk_kd.errors import ConfigError, ModelError
from disk_kd.hints import HINTS, Context, Hint
from disk_kd.tasks import METHODS, StudentTask
from disk_kd.teacher import Teacher

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
IDS = torch.arange(6)
OPTIONS: dict[str, dict[str, Any]] = {"crd": {"negatives": 8, "dimensions": 4}}
FALLS_TO = {"vid": 0.95}
"""Share of the first loss that is left after some steps. The logarithm of its first variance, 5, is most of VID's."""


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student, teacher = (timm.create_model(f"cifar_resnet10_{size}", num_classes=5) for size in ("xxxs", "s"))
    return student, teacher


def with_hint(name: str, method: str = "ce", **options: Any) -> tuple[StudentTask, nn.Module]:
    student, teacher = models()
    options = OPTIONS.get(name, {}) | options
    student = HINTS[name].prepare(student, teacher, options)
    task = METHODS[method](student) if method == "ce" else METHODS[method](student, teacher)
    context = Context(student, teacher, 3, 32, 32, targets=TARGETS)
    task.add_hint(HINTS[name](context, **options), teacher)
    return task, student


def parts(task: StudentTask) -> dict[str, Tensor]:
    return task(IMAGES, TARGETS, {"ids": IDS} if task.needs_ids else None)


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_is_lowered_by_training_and_leaves_a_plain_student(name: str) -> None:
    task, student = with_hint(name, **({"warmup_epochs": 0.0} if name in ("reviewkd", "sdd") else {}))
    task.train()
    optimizer = torch.optim.Adam(task.trainable_module.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        result = parts(task)
        losses.append(result["hint_loss"].item())
        assert not result["hint_loss"].requires_grad
        (result["loss"] - result["ce_loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < FALLS_TO.get(name, 0.8) * losses[0]
    assert task.student is student
    assert task.student(IMAGES).shape == (6, 5)


@pytest.mark.parametrize("name", HINTS)
def test_gradients_reach_the_student_and_not_the_teacher(name: str) -> None:
    task, student = with_hint(name)
    task.train()
    parts(task)["loss"].backward()
    assert task.teacher is not None
    assert all(p.grad is None for p in task.teacher.parameters())
    stem = next(p for p in student.parameters() if p.requires_grad)
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0
    if name != "simkd":  # whose projector is the student's own
        trained = {id(p) for phase in task.phases for p in getattr(task, phase.module).parameters()}
        assert {id(p) for p in task.hint.parameters()} <= trained


@pytest.mark.parametrize("method", ["kd", "dkd", "nkd", "dist", "ttm", "wttm", "rld", "wkd", "abkd", "gce", "disk"])
@pytest.mark.parametrize("name", ["fitnet", "at", "simkd"])
def test_hints_add_their_loss_to_every_logit_method(name: str, method: str) -> None:
    task, _ = with_hint(name, method)
    task.eval()
    result = parts(task)
    assert result["hint_loss"] > 0
    assert task.needs >= {"logits", *task.hint.teacher}
    hint = task.hint
    weight, hint.weight = hint.weight, 0.0
    without = parts(task)
    assert result["loss"].item() == pytest.approx(without["loss"].item() + result["hint_loss"].item(), rel=1e-5)
    assert weight > 0


def test_stored_outputs_do_for_a_hint() -> None:
    task, _ = with_hint("fitnet")
    task.eval()
    online = parts(task)["loss"]
    assert task.teacher is not None
    stored = task.teacher(IMAGES)
    task.teacher = None
    assert torch.equal(task(IMAGES, TARGETS, stored)["loss"], online)
    with pytest.raises(ConfigError, match="neither a teacher nor stored outputs"):
        task(IMAGES, TARGETS, {})


def test_the_weight_rises_over_the_warm_up() -> None:
    task, _ = with_hint("reviewkd", warmup_epochs=2.0)
    task.steps_per_epoch = 2
    task.train()
    plain = task.hint.weight
    weights = [task.ramp(task.hint.warmup_epochs) * plain for _ in range(6) if parts(task)]
    assert [float(w) for w in weights] == pytest.approx([0.5 * plain, 0.75 * plain, plain, plain, plain, plain])


def test_layers_are_named_by_stage_or_by_module() -> None:
    for layer in ("stage1", "map", "layer2"):
        task, _ = with_hint("fitnet", student_layer=layer, teacher_layer="stage2")
        assert parts(task)["loss"].isfinite()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "fitnet",
            {"student_layer": "layer9"},
            "the student's layers: ResNet has no .* module 'layer9'.*nearest: layer",
        ),
        (
            "rkd",
            {"teacher_layer": "layer9"},
            "the teacher's layers: ResNet has no output or module 'layer9'; give pooled",
        ),
        ("sp", {"student_layer": "stage7"}, "the student's layers: ResNet has stage0 to stage4, not stage7"),
        ("fitnet", {"teacher_layer": "stage9"}, "the teacher's layers: ResNet has stage0 to stage4, not stage9"),
        ("fitnet", {"student_layer": "pooled"}, r"the student's layers: pooled of ResNet must be a map .* is \(16,\)"),
        (
            "vid",
            {"student_layers": ["map"], "teacher_layers": ["pooled"]},
            "the teacher's layers: pooled .* must be a map",
        ),
        ("at", {"student_layers": ["stage0"]}, r"must be as many, got \['stage0'\] and \['stage0', .*'stage4'\]; name"),
    ],
)
def test_layers_that_do_not_fit_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        with_hint(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fitnet", {"weight": -1.0}, "hint.weight must be a number not below 0, not -1.0"),
        ("fitnet", {"weight": float("nan")}, "hint.weight must be a number not below 0, not nan"),
        ("reviewkd", {"warmup_epochs": -1.0}, "hint.warmup_epochs must be a number not below 0"),
        ("rkd", {"angle_weight": -1.0}, "hint.angle_weight must be a number not below 0"),
        ("sdd", {"beta": -1.0}, "hint.beta must be a number not below 0, not -1.0"),
        ("sdd", {"temperature": 0.0}, "hint.temperature must be finite and above 0, got 0.0; try 4"),
        ("sdd", {"scales": [2, 4]}, r"hint.scales must begin with 1 and rise, such as \[1, 2, 4\], not \[2, 4\]"),
        ("sdd", {"scales": [1, 4, 2]}, r"hint.scales must begin with 1 and rise, .* not \[1, 4, 2\]"),
        ("sdd", {"scales": []}, r"hint.scales must begin with 1 and rise, .* not \[\]"),
    ],
)
def test_bad_settings_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_hint(name, **options)


WITHOUT_FEATURES = "the student's layers: Sequential has no forward_features and no forward_head"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fitnet", f"{WITHOUT_FEATURES} and no feature_info, from which its map output is read; use a timm model"),
        ("sp", f"{WITHOUT_FEATURES}, from which its last output is read"),
        ("rkd", f"{WITHOUT_FEATURES}, from which its pooled output is read"),
        ("crd", f"{WITHOUT_FEATURES}, from which its pooled output is read"),
        ("sdd", f"{WITHOUT_FEATURES}, from which its last output is read"),
        ("at", "the student Sequential does not tell its stages; name the modules to read with hint.student_layers"),
        ("vid", "the student Sequential does not tell its stages"),
        ("reviewkd", "the student Sequential does not tell its stages"),
        ("simkd", "the student Sequential has no feature_info and no forward_features"),
    ],
)
def test_a_feature_method_without_features(name: str, message: str) -> None:
    student, teacher = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), models()[1]
    with pytest.raises(ModelError, match=message):
        HINTS[name](Context(HINTS[name].prepare(student, teacher, {}), teacher, 3, 32, 32, targets=TARGETS))


def test_modules_can_be_read_of_a_model_that_does_not_tell_its_stages() -> None:
    student, teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 5)), models()[1]
    task = CETask(student)
    layers = {"student_layers": ["0"], "teacher_layers": ["layer2"]}
    task.add_hint(HINTS["at"](Context(student, teacher, 3, 32, 32), **layers), teacher)
    assert parts(task)["hint_loss"] > 0


def test_reviewkd_reads_no_tokens() -> None:
    student = timm.create_model("test_vit", img_size=32, num_classes=5)
    layers = {"student_layers": ["last"], "teacher_layers": ["last"]}
    with pytest.raises(ModelError, match=r"ReviewKD reads maps .* and pooled features, not \(\d+, 64\); name others"):
        HINTS["reviewkd"](Context(student, models()[1], 3, 32, 32), **layers)


@pytest.mark.parametrize("name", HINTS)
def test_maps_of_other_sizes(name: str) -> None:
    """All hints take a teacher's maps that are twice as large; SimKD none that are half as large."""
    student, teacher = models()
    student = HINTS[name].prepare(student, teacher, OPTIONS.get(name, {}))
    for teacher_size in (64, 16):
        context = Context(student, teacher, 3, 32, teacher_size, targets=TARGETS)
        if (name, teacher_size) == ("simkd", 16):
            with pytest.raises(ModelError, match=r"last map is no smaller .*, got \(64, 2, 2\) and \(64, 4, 4\); give"):
                HINTS[name](context)
            continue
        task = CETask(student)
        frozen = Teacher.of(teacher, student, image_size=teacher_size)
        task.add_hint(HINTS[name](context, **OPTIONS.get(name, {})), frozen)
        assert parts(task)["loss"].isfinite()


def test_crd_reads_maps() -> None:
    task, _ = with_hint("crd", student_layer="map", teacher_layer="last")
    assert parts(task)["loss"].isfinite()


@pytest.mark.parametrize(("name", "least"), [("sp", 2), ("rkd", 3)])
def test_a_relation_needs_a_batch(name: str, least: int) -> None:
    task, _ = with_hint(name)
    task.eval()
    with pytest.raises(ConfigError, match=f"needs a batch of at least {least} images, got {least - 1}"):
        task(IMAGES[: least - 1], TARGETS[: least - 1])
    assert task(IMAGES[:least], TARGETS[:least])["hint_loss"] > 0


@pytest.mark.parametrize("name", ["fitnet", "at", "vid", "crd", "reviewkd", "simkd", "sdd"])
def test_other_hints_learn_from_one_image(name: str) -> None:
    """Where no batch norm trains."""
    task, _ = with_hint(name, **({"warmup_epochs": 0.0} if name in ("reviewkd", "sdd") else {}))
    task.eval()
    outputs = {"ids": IDS[:1]} if task.needs_ids else None
    assert task(IMAGES[:1], TARGETS[:1], outputs)["hint_loss"] > 0


def test_a_hint_reads_modules_of_a_folded_teacher_as_they_were() -> None:
    losses = []
    for fold in (False, True):
        student, teacher = models()
        teacher.layer1[0].bn1.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        task, frozen = CETask(student.eval()), Teacher.of(teacher, student, fold=fold)
        hint = HINTS["sp"](Context(student, frozen.model, 3, 32, 32), teacher_layer="layer1.0.conv1")
        task.add_hint(hint, frozen)
        losses.append(parts(task)["hint_loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_sdd_of_the_whole_image_is_kd_and_reads_no_label() -> None:
    student, teacher = models()
    task, kd = with_hint("sdd", scales=[1], warmup_epochs=0.0)[0], KDTask(student, teacher, temperature=4.0)
    result, expected = task.eval()(IMAGES, torch.full((6,), -100)), kd.eval()(IMAGES, TARGETS)
    torch.testing.assert_close(result["hint_loss"], 0.9 * expected["kd_loss"])
    assert result["ce_loss"] == 0


def test_sdd_compares_the_logits_of_regions_and_stores_no_map() -> None:
    task, student = with_hint("sdd", scales=[1, 2, 4], warmup_epochs=0.0)
    task.eval()
    assert task.teacher is not None
    stored = task.teacher(IMAGES)
    assert {name: output.shape for name, output in stored.items()} == {"regions1-2-4": (6, 21, 5)}
    online = parts(task)["loss"]
    task.teacher = None
    assert torch.equal(task(IMAGES, TARGETS, stored)["loss"], online)
    online.backward()
    assert student.get_classifier().weight.grad.abs().sum() > 0


def test_sdd_needs_maps_with_regions_and_a_head_that_averages_them() -> None:
    student, teacher = models()
    message = (
        r"the teacher's last map, 1x1 of ResNet, has no 2x2 regions; give larger images \(data.image_size, teacher"
    )
    with pytest.raises(ModelError, match=message):
        HINTS["sdd"](Context(student, teacher, 3, 32, 8))
    peaks = timm.create_model("test_resnet", num_classes=5, global_pool="max").train()
    with pytest.raises(ModelError, match="the head of the student ResNet must average the last map before it classif"):
        HINTS["sdd"](Context(peaks, teacher, 3, 64, 32))
    assert all(module.training for module in peaks.modules())
    tokens = timm.create_model("test_vit", img_size=32, num_classes=5)
    with pytest.raises(ModelError, match="the student's layers: last of VisionTransformer must be a map"):
        HINTS["sdd"](Context(tokens, teacher, 3, 32, 32))


def test_a_hint_needs_a_teacher_and_stands_alone() -> None:
    student, teacher = models()
    context = Context(student, teacher, 3, 32, 32)
    with pytest.raises(ConfigError, match="FitNetHint needs a teacher"):
        CETask(student).add_hint(HINTS["fitnet"](context))
    task = DiSKTask(student, teacher)
    task.add_hint(HINTS["fitnet"](context))
    with pytest.raises(ConfigError, match="has the hint FitNetHint already"):
        task.add_hint(HINTS["at"](context))


MOVED = {
    "student": {"student", "hint"},
    "helper": {"helper"},
    "joint": {"student", "hint", "helper"},
    None: {"student", "hint", "helper"},
}


@pytest.mark.parametrize("helper", ["teacher-map", "both-maps"])
@pytest.mark.parametrize("variant", ["normalised", "paper", "imagenet"])
def test_a_helper_network_and_a_hint_train_side_by_side(helper: str, variant: Any) -> None:
    student, teacher = models()
    hint = HINTS["fitnet"](Context(student, teacher, 3, 32, 32), weight=2.0)
    alone = DiSKTask(student, teacher, helper=helper, variant=variant)
    task = copy.deepcopy(alone)
    task.add_hint(hint)
    assert task.get_eval_model() is task.student
    assert isinstance(task.student, type(student))
    for phase in (*task.phases, None):
        for each in (task, alone):
            each.set_phase(phase and phase.name)
        task.zero_grad()
        result, expected = task(IMAGES, TARGETS), alone(IMAGES, TARGETS)["loss"]
        result["loss"].backward()
        torch.testing.assert_close(result["loss"], expected + result.get("hint_loss", 0.0))
        of = {"student": task.student, "hint": task.hint, "helper": task.helper}
        moved = {name for name, module in of.items() if any(p.grad is not None for p in module.parameters())}
        assert moved == MOVED[phase and phase.name]
        if phase is not None:
            parameters = {id(p) for p in getattr(task, phase.module).parameters()}
            assert parameters == {id(p) for name in moved for p in of[name].parameters()}


def test_simkd_reuses_the_classifier_and_tells_its_cost() -> None:
    task, student = with_hint("simkd")
    cost = student.added_cost()
    assert cost["parameters"] > 0
    assert cost["multiply_adds"] > 0
    _, teacher = models()
    classifier = teacher.get_classifier().weight
    assert any(torch.equal(p, classifier) and not p.requires_grad for p in student.parameters())
    assert isinstance(task.hint, Hint)


def test_a_hint_does_not_change_a_teacher_that_was_given() -> None:
    student, teacher = models()
    frozen = Teacher.of(teacher, student)
    task = KDTask(student, frozen)
    task.add_hint(HINTS["fitnet"](Context(student, teacher, 3, 32, 32)))
    assert frozen.needs == {"logits"}
    assert task.teacher is not None
    assert task.teacher.needs == {"logits", "map"}
