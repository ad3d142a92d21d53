"""The task that learns a backbone's pooled features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from disk_kd.errors import ConfigError, ModelError
from disk_kd.hints import FitNetHint
from disk_kd.hints.base import Context
from disk_kd.losses import feature_kd_loss
from disk_kd.models import create_model
from disk_kd.models.linear import PooledBackbone
from disk_kd.support import UNLABELLED
from disk_kd.tasks import FeatureTask, KDTask
from disk_kd.teacher import Teacher

UNLABELLED_4 = torch.full((4,), UNLABELLED)


def models(classes: int = 0, teacher: str = "cifar_resnet10_xxs") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return create_model("cifar_resnet10_xxxs", num_classes=5), create_model(teacher, num_classes=classes)


@pytest.mark.parametrize("classes", [0, 7])
def test_learns_features_without_labels_and_without_the_teachers_classes(classes: int) -> None:
    student, teacher = models(classes)
    before = student.get_classifier().weight.clone()
    task = FeatureTask(student, teacher)
    assert not task.classifies
    images = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        result = task(images, UNLABELLED_4)
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result["loss"].item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(student.get_classifier().weight, before)
    assert task.student is student
    assert result["ce_loss"] == 0


def test_loss_is_the_formula_and_stored_features_replace_the_teacher() -> None:
    task = FeatureTask(*models(), cosine_weight=0.5, squared_weight=2.0, ce_weight=0.3, hidden=8).eval()
    assert task.classifies
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 4, UNLABELLED])
    result = task(images, labels)
    projector = task.trainable_module.projector
    pooled = task.student.forward_head(task.student.forward_features(images), pre_logits=True)
    stored = task.teacher(images)
    expected = feature_kd_loss(projector(pooled), stored["pooled"], cosine_weight=0.5, squared_weight=2.0)
    expected = expected + 0.3 * nn.functional.cross_entropy(result["output"][:3], labels[:3])
    torch.testing.assert_close(result["loss"], expected)
    task.teacher = None
    torch.testing.assert_close(task(images, labels, stored)["loss"], expected)


def test_every_parameter_gets_a_gradient_as_data_parallel_wrappers_need() -> None:
    task = FeatureTask(*models())
    task(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.trainable_module.parameters())


def test_takes_a_hint_and_a_backbone_of_a_user() -> None:
    student, teacher = models()
    task = FeatureTask(student, teacher)
    alone = task.eval()(torch.ones(4, 3, 32, 32), UNLABELLED_4)["loss"]
    task.add_hint(FitNetHint(Context(student, teacher, 3, 32, 32)))
    both = task.eval()(torch.ones(4, 3, 32, 32), UNLABELLED_4)
    torch.testing.assert_close(both["loss"], alone + both["hint_loss"])

    flat = PooledBackbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6)))
    task = FeatureTask(student, Teacher.of(flat, student, {"pooled"}))
    assert task.trainable_module.projector.out_features == 6


def test_refuses_what_has_no_pooled_features() -> None:
    student, teacher = models()
    with pytest.raises(ModelError, match="Linear has no forward_features and no forward_head"):
        FeatureTask(student, nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"gives \(\d+, \d+, \d+\) for an image, not pooled features \(F,\)"):
        FeatureTask(student, create_model("resnet18", num_classes=0, global_pool=""))
    with pytest.raises(ConfigError, match="squared_weight must be a number not below 0, not -1"):
        FeatureTask(student, teacher, squared_weight=-1.0)
    with pytest.raises(ModelError, match="teacher has 7 classes, the student 5"):
        KDTask(student, models(7)[1])
