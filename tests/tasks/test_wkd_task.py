"""WKD-L's costs: from the teacher's classifier, or from its logits of training images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from disk_kd.arguments import parse_run
from disk_kd.errors import ConfigError, DataError, ModelError
from disk_kd.files import save_tensors
from disk_kd.losses import cka_relations, class_costs, classifier_relations, wkd_loss
from disk_kd.run import execute
from disk_kd.tasks import WKDTask

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 1, 2, 0, 0, 1, 2, 2, 1, 0])


def make(**options: Any) -> WKDTask:
    torch.manual_seed(0)
    student, teacher = (timm.create_model(f"cifar_resnet10_{size}", num_classes=3) for size in ("xxxs", "xxs"))
    return WKDTask(student, teacher, **options).eval()


@pytest.mark.parametrize("separate", [True, False])
def test_the_classifier_tells_the_costs(separate: bool) -> None:
    task = make(ce_weight=0.0, wkd_weight=2.0, separate=separate, sharpness=3.0)
    assert task.teacher is not None
    result = task(IMAGES, TARGETS)
    costs_CC = class_costs(classifier_relations(task.teacher.model.linear.weight), sharpness=3.0)
    teacher_BC = task.teacher(IMAGES)["logits"]
    expected = wkd_loss(
        result["output"], teacher_BC, TARGETS if separate else None, costs_CC, weight=30.0, temperature=2.0
    )
    torch.testing.assert_close(result["wkd_loss"], expected.detach())
    torch.testing.assert_close(result["loss"], 2 * expected)


def halves(stored: dict[str, Tensor] | None = None) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    rows = [slice(0, 6), slice(6, 12)]
    return [(IMAGES[r], TARGETS[r], {k: v[r] for k, v in (stored or {}).items()}) for r in rows]


@pytest.mark.parametrize("kept", [False, True])
def test_training_images_tell_the_costs(kept: bool) -> None:
    """The first of each class, in the order in which they come, by the running teacher or its stored logits."""
    task = make(relations="cka", relation_images=3)
    assert task.teacher is not None
    logits_NC = task.teacher(IMAGES)["logits"]
    with pytest.raises(ConfigError, match="relations of the classes are not known yet: call begin, or give relations"):
        task(IMAGES, TARGETS)
    if kept:
        task.teacher = None
    task.begin(halves({"logits": logits_NC} if kept else None))
    features_CNF = torch.stack([logits_NC[label == TARGETS][:3] for label in range(3)])
    torch.testing.assert_close(task.costs_CC, class_costs(cka_relations(features_CNF), sharpness=1.0))
    assert task(IMAGES, TARGETS, {"logits": logits_NC})["loss"].isfinite()


def test_it_stops_when_it_has_enough_and_takes_fewer_where_there_are_fewer() -> None:
    task = make(relations="cka", relation_images=2)
    asked = iter(halves())
    task.begin(asked)
    assert len(list(asked)) == 1
    few, whole = make(relations="cka", relation_images=50), make(relations="cka", relation_images=4)
    for each in (few, whole):
        each.begin(halves())
    assert torch.equal(few.costs_CC, whole.costs_CC)


def test_images_without_a_label_tell_nothing() -> None:
    labelled = TARGETS != 1
    found = []
    for first in ((IMAGES, TARGETS.where(labelled, -100), {}), (IMAGES[labelled], TARGETS[labelled], {})):
        task = make(relations="cka", relation_images=3)
        task.begin([first, *halves()])
        found.append(task.costs_CC)
    torch.testing.assert_close(*found)
    with pytest.raises(DataError, match="needs 2 training images of each class, a class has 1; give relations=class"):
        make(relations="cka").begin([(IMAGES[:4], TARGETS[:4], {})])


def test_mixed_labels_and_none_need_one_transport() -> None:
    assert not make().mixes
    assert not make().unlabelled
    task = make(separate=False)
    assert task.mixes
    assert task.unlabelled
    shares_BC = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    losses = [task(IMAGES, targets)["wkd_loss"] for targets in (shares_BC, torch.full((12,), -100), TARGETS)]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(DataError, match="labels are expected in 0 … 2, got -100"):
        make()(IMAGES, torch.full((12,), -100))


def test_the_transports_weight_falls() -> None:
    task = make(decay=(1.0, 3.0), transport_weight=8.0, ce_weight=0.0)
    label = make(transport_weight=0.0)(IMAGES, TARGETS)["wkd_loss"]
    task.steps_per_epoch, found = 2, []
    for step in range(8):
        task.step.fill_(step)
        found.append((task(IMAGES, TARGETS)["wkd_loss"] - label).item())
    whole = found[0]
    falling = [whole * (1 + math.cos(math.pi * share)) / 2 for share in (0, 0, 0, 0.25, 0.5, 0.75, 1, 1)]
    assert found == pytest.approx(falling, rel=1e-3, abs=1e-4)


def test_a_teacher_without_a_linear_classifier_is_told() -> None:
    student = timm.create_model("cifar_resnet10_xxxs", num_classes=3)
    teacher = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())
    with pytest.raises(ModelError, match="Sequential has no linear classifier that tells how alike classes are"):
        WKDTask(student, teacher)
    task = WKDTask(student, teacher, relations="cka").eval()
    task.begin(halves())
    assert task(IMAGES, TARGETS)["loss"].isfinite()


def test_a_run_learns_the_costs_before_it_trains(tmp_path: Path) -> None:
    """The classes' logits from the store of the first epoch: without them the first step would refuse."""
    teacher = timm.create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    save_tensors(tmp_path / "teacher.safetensors", teacher.state_dict())
    options = ["--data.name=digits", "--data.limit_train=80", "--data.views=1", "--data.validation=0.2"]
    options += ["--student.name=cifar_resnet10_xxxs", "--teacher.name=cifar_resnet10_xxxs", "--teacher.store=true"]
    options += [f"--teacher.weights={tmp_path / 'teacher.safetensors'}", "--method=wkd", "--method.relations=cka"]
    options += ["--train.epochs=1", "--train.batch_size=40", "--train.warmup_epochs=0", "--train.compile=false"]
    options += [f"--runs={tmp_path}", f"--output={tmp_path / 'run'}", "--quiet"]
    assert execute(parse_run("distill", options))["student_epochs"] == 1
