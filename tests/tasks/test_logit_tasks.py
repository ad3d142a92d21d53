"""DKD, NKD, DIST, logit standardisation, and timm's tasks: each is its loss plus the labels'."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from disk_kd import KDTask
from disk_kd.errors import ConfigError, ModelError
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
    skd_loss,
    standardise,
    ttm_loss,
    wttm_loss,
)
from disk_kd.tasks import METHODS
from disk_kd.teacher import Teacher
from disk_kd.training.state import task_state

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 1])
LEVELS = ("instance_weight", "batch_weight", "class_weight")
LOSSES: dict[str, Any] = {
    "dkd": lambda s, t: dkd_loss(s, t, TARGETS, alpha=1.0, beta=8.0, temperature=4.0),
    "nkd": lambda s, t: nkd_loss(s, t, TARGETS, gamma=1.5, temperature=1.0),
    "dist": lambda s, t: dist_loss(s, t, inter_weight=2.0, intra_weight=2.0, temperature=4.0),
    "ttm": lambda s, t: 3.6 * ttm_loss(s, t, temperature=4.0),
    "wttm": lambda s, t: 0.3 * wttm_loss(s, t, temperature=10.0),
    "rld": lambda s, t: rld_loss(s, t, TARGETS, alpha=1.0, beta=8.0, temperature=4.0),
    "abkd": lambda s, t: 2.0 * abkd_loss(s, t, alpha=0.8, beta=0.3, temperature=4.0),
    "gce": lambda s, t: 0.9 * gce_loss(s, t, power=0.3, temperature=2.0),
    "mlkd": lambda s, t: 0.9 * mlkd_loss(s, t, **dict.fromkeys(LEVELS, 1.0), temperatures=(2.0, 3.0, 4.0, 5.0, 6.0)),
    "skd": lambda s, t: 0.9 * skd_loss(s, t, instance_weight=1.0, direction_weight=1.0, temperature=4.0, tikhonov=0.1),
}


def make(name: str, teacher_size: str = "xxs", **options: Any) -> Any:
    torch.manual_seed(0)
    student, teacher = (timm.create_model(f"cifar_resnet10_{size}", num_classes=3) for size in ("xxxs", teacher_size))
    return METHODS[name](student, teacher, **options).eval()


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_published_one_plus_the_labels(name: str, standardised: bool) -> None:
    task = make(name, ce_weight=0.5, standardise=standardised, warmup_epochs=0.0)
    result = task(IMAGES, TARGETS)
    pair = (result["output"], task.teacher(IMAGES)["logits"])
    published = LOSSES[name](*(map(standardise, pair) if standardised else pair))
    expected = 0.5 * F.cross_entropy(result["output"], TARGETS) + published
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.weight * result[f"{name}_loss"].item() == pytest.approx(published.item(), rel=1e-5)


def test_standardised_kd() -> None:
    task = make("kd", temperature=2.0, kd_weight=9.0, ce_weight=0.1, standardise=True)
    result = task(IMAGES, TARGETS)
    pair = (standardise(result["output"]), standardise(task.teacher(IMAGES)["logits"]))
    kd = kd_loss(*pair, student_temperature=2.0, teacher_temperature=2.0)
    assert result["kd_loss"].item() == pytest.approx(kd.item(), rel=1e-5)


def test_jensen_shannon_and_reverse_kd() -> None:
    both = {"student_temperature": 3.0, "teacher_temperature": 3.0}
    task = make("jsd", temperature=3.0, skew=0.2, jsd_weight=2.0, ce_weight=0.0)
    result = task(IMAGES, TARGETS)
    teacher = task.teacher(IMAGES)["logits"]
    expected = 2 * jensen_shannon_loss(result["output"], teacher, skew=0.2, **both)
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    result = make("kd", temperature=3.0, reverse=0.5, kd_weight=2.0, ce_weight=0.0)(IMAGES, TARGETS)
    expected = 2 * kd_loss(result["output"], teacher, reverse=0.5, **both)
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ConfigError, match=r"skew must be above 0 and below 1, not 1; kd with reverse 1 is that limit"):
        make("jsd", skew=1)
    with pytest.raises(ConfigError, match=r"reverse must be in \[0, 1\], not 1\.5"):
        make("kd", reverse=1.5)


def test_dkd_warms_up() -> None:
    task = make("dkd", warmup_epochs=2.0)
    task.steps_per_epoch, seen = 2, []
    task.train()
    for _ in range(5):
        result = task(IMAGES, TARGETS)
        seen.append(((result["loss"] - result["ce_loss"]) / result["dkd_loss"]).item())
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dkd", {"temperature": 0.0}, "temperature must be a positive number, not 0.0"),
        ("dkd", {"beta": -1.0}, "beta must be a number not below 0"),
        ("nkd", {"gamma": -1.0}, "gamma must be a number not below 0"),
        ("dist", {"dist_weight": float("nan")}, "dist_weight must be a number not below 0"),
        ("ttm", {"temperature": -1.0}, "temperature must be a positive number, not -1.0"),
        ("wttm", {"wttm_weight": -1.0}, "wttm_weight must be a number not below 0"),
        ("rld", {"alpha": -1.0}, "alpha must be a number not below 0"),
        ("abkd", {"alpha": 0.0, "beta": 0.0}, "alpha and beta must be 0 or more, and not both 0, got 0.0 and 0.0"),
        ("gce", {"power": 1.5}, "power must be above 0 and at most 1, got 1.5"),
        ("wkd", {"smoothing": 0.0}, "smoothing must be finite and at least 0.025, got 0.0"),
        ("wkd", {"decay": (3.0, 2.0)}, r"decay must be two epochs, the later one second, not \[3.0, 2.0\]"),
        ("wkd", {"relation_images": 1}, "relation_images must be at least 2, not 1"),
        ("wkd", {"relations": "features"}, "relations must be classifier or cka, not 'features'"),
        ("wkd", {"sharpness": 0.0}, "sharpness must be a positive number, not 0.0"),
        ("mlkd", {"temperatures": ()}, r"temperatures must hold at least one number, got none; try \[2, 3, 4, 5, 6\]"),
        ("mlkd", {"temperatures": (2.0, 0.0)}, "each of the temperatures must be a positive number, not 0.0"),
        ("mlkd", {"batch_weight": -1.0}, "batch_weight must be a number not below 0, not -1.0"),
        ("skd", {"tikhonov": 0.0}, "tikhonov must be a positive number, not 0.0"),
        ("skd", {"direction_weight": float("inf")}, "direction_weight must be a number not below 0, not inf"),
    ],
)
def test_bad_settings_are_named(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **options)


def test_timms_kd_is_ours() -> None:
    timms = make("timm-logits", temperature=4.0, task_loss_weight=0.1, distill_loss_weight=0.9)
    ours = KDTask(timms.student, timms.teacher.model, temperature=4.0).eval()
    result = timms(IMAGES, TARGETS)
    assert result["loss"].item() == pytest.approx(ours(IMAGES, TARGETS)["loss"].item(), rel=1e-5)
    assert {"task_loss", "kd_loss"} <= result.keys()


def test_timms_feature_task_trains_its_projection_and_keeps_the_student() -> None:
    task = make("timm-features", teacher_size="m")
    module = getattr(task, task.phases[0].module)
    assert module.projection.weight.requires_grad
    task.train()
    task(IMAGES, TARGETS)["loss"].backward()
    assert module.projection.weight.grad is not None
    assert task.student(IMAGES).shape == (4, 3)
    assert not any("teacher" in name for name in task_state(task))


@pytest.mark.parametrize(("name", "need"), [("timm-logits", "logits"), ("timm-features", "pooled")])
def test_timms_tasks_learn_from_what_the_teacher_gives_or_gave(name: str, need: str) -> None:
    """The teacher with its own normalisation and size, or its stored outputs."""
    torch.manual_seed(0)
    student = timm.create_model("cifar_resnet10_xxxs", num_classes=3, in_chans=1)
    teacher = timm.create_model("cifar_resnet10_xxs", num_classes=3, in_chans=1)
    teacher.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    task = METHODS[name](student, Teacher.of(teacher, student, image_size=24)).eval()
    assert task.needs == {need}
    grey = IMAGES[:, :1]
    online, outputs = task(grey, TARGETS), task.teacher(grey)
    assert outputs[need].shape == (4, {"logits": 3, "pooled": 16}[need])
    task.teacher = None
    for part, value in task(grey, TARGETS, outputs).items():
        assert torch.equal(value, online[part]), part
    other = task(grey, TARGETS, {need: 2 * outputs[need]})
    assert other["task_loss"] == online["task_loss"]
    assert other["kd_loss"] != online["kd_loss"]


def test_timms_tasks_say_what_does_not_fit() -> None:
    student, teacher = (timm.create_model("cifar_resnet10_xxxs", num_classes=classes) for classes in (3, 4))
    with pytest.raises(ModelError, match="teacher has 4 classes, the student 3"):
        METHODS["timm-logits"](student, teacher)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    for pair in ((plain, student), (student, plain)):
        with pytest.raises(ModelError, match=r"Sequential has no forward_features and no .* its pooled output is read"):
            METHODS["timm-features"](*pair)


def test_relations_of_a_class_need_a_batch() -> None:
    task = make("dist")
    with pytest.raises(ConfigError, match="DIST's relation within a class needs a batch of at least 3 images, got 1"):
        task(IMAGES[:1], TARGETS[:1])
    assert make("dist", intra_weight=0.0)(IMAGES[:1], TARGETS[:1])["dist_loss"] > 0


def test_angles_need_two_images_and_all_logits() -> None:
    task = make("skd")
    assert (task.least_batch, task.top_logits) == (2, 3)
    with pytest.raises(ConfigError, match="SKD's relation of directions needs a batch of at least 2 images, got 1"):
        task(IMAGES[:1], TARGETS[:1])
    alone = make("skd", direction_weight=0.0)
    assert (alone.least_batch, alone.top_logits) == (1, 0)
    assert alone(IMAGES[:1], TARGETS[:1])["skd_loss"] > 0


@pytest.mark.parametrize("name", ["mlkd", "skd", "ttm", "wttm", "abkd", "gce"])
def test_the_teacher_is_followed_without_labels(name: str) -> None:
    task = make(name)
    result = task(IMAGES, torch.full((4,), -100))
    assert result["ce_loss"] == 0
    assert result[f"{name}_loss"] == task(IMAGES, TARGETS)[f"{name}_loss"] > 0


def test_the_distillation_token_learns_from_the_teacher() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    student = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **sizes)
    teacher = timm.create_model("cifar_resnet10_xxs", num_classes=3)
    task = METHODS["timm-token"](student, teacher).train()
    result = task(IMAGES, TARGETS)
    result["loss"].backward()
    assert student.head_dist.weight.grad.abs().sum() > 0
    task.eval()
    assert task.student(IMAGES).shape == (4, 3)
    with pytest.raises(ModelError, match="has no distillation token"):
        make("timm-token")
    with pytest.raises(ConfigError, match="takes no hint"):
        task.add_hint(None)
