"""Labels that are shares of several classes, as mixup and cutmix make them."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from disk_kd.errors import ConfigError
from disk_kd.tasks import METHODS, CETask, DiSKTask, StudentTask

MIXING = (
    "ce",
    "kd",
    "dist",
    "mlkd",
    "skd",
    "jsd",
    "ttm",
    "wttm",
    "abkd",
    "gce",
    "feature",
    "disk",
    "timm-logits",
    "timm-features",
)


def make(name: str, **options: object) -> StudentTask:
    torch.manual_seed(0)
    student, teacher = (timm.create_model("cifar_resnet10_xxs", num_classes=5) for _ in range(2))
    models = (student,) if name == "ce" else (student, teacher)
    if name == "feature":  # its default has no loss on the labels
        options = {"ce_weight": 1.0, **options}
    return METHODS[name](*models, **options)  # type: ignore[arg-type]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6) % 5


@pytest.mark.parametrize("name", MIXING)
def test_whole_shares_are_labels(name: str) -> None:
    assert METHODS[name] is CETask or make(name).mixes
    images, targets = inputs()
    losses = [make(name).train()(images, labels)["loss"] for labels in (targets, F.one_hot(targets, 5).float())]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", MIXING)
def test_shares_train(name: str) -> None:
    images, targets = inputs()
    shares = 0.7 * F.one_hot(targets, 5).float() + 0.3 * F.one_hot(targets.flip(0), 5).float()
    task = make(name).train()
    result = task(images, shares)
    result["loss"].backward()
    assert all(value.isfinite().all() for value in result.values())
    gradients = [parameter.grad for parameter in task.student.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_a_constant_helper_takes_shares() -> None:
    images, targets = inputs()
    shares = F.one_hot(targets, 5).float()
    result = make("disk", helper=0.3)(images, shares)
    torch.testing.assert_close(result["loss"], make("disk", helper=0.3)(images, targets)["loss"])
    assert result["helper_mean"].item() == pytest.approx(0.3)


def test_what_needs_one_label_says_so() -> None:
    for name in METHODS.keys() - MIXING - {"timm-token"}:
        assert not make(name).mixes, name
    for variant in ("paper", "imagenet"):
        task = make("disk", variant=variant, helper=0.5)
        assert isinstance(task, DiSKTask)
        assert not task.mixes
        images, targets = inputs()
        with pytest.raises(ConfigError, match="targets must be int64 class indices"):
            task(images, F.one_hot(targets, 5).float())
