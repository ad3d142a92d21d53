"""The methods compared on digits: each has its recipe, and lowers its own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.data import load_dataset
from disk_kd.hints import HINTS
from disk_kd.recipe import RECIPES, load_recipe
from disk_kd.support import UNLABELLED
from disk_kd.tasks import METHODS

OWN = {
    "ce": "ce_loss",
    "kd": "kd_loss",
    "dkd": "dkd_loss",
    "nkd": "nkd_loss",
    "dist": "dist_loss",
    "mlkd": "mlkd_loss",
    "skd": "skd_loss",
    "ttm": "ttm_loss",
    "wttm": "wttm_loss",
    "rld": "rld_loss",
    "wkd": "wkd_loss",
    "abkd": "abkd_loss",
    "gce": "gce_loss",
    "jsd": "jsd_loss",
    "disk": "scaffold_loss",
    "self-training": "pseudo_loss",
    "feature": "feature_loss",
    "timm-logits": "kd_loss",
    "timm-features": "kd_loss",
    "timm-token": "distill_loss",
}
"""What the log calls a method's own loss."""

FOLDER = Path(str(RECIPES)) / "digits-methods"
TOKEN: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
STEPS = 40


def test_each_method_and_each_hint_has_its_recipe() -> None:
    recipes = [load_recipe(path) for path in FOLDER.glob("[!_]*.yaml")]
    assert {recipe["method"]["name"] for recipe in recipes} == set(METHODS)
    assert {recipe["hint"]["name"] for recipe in recipes if "hint" in recipe} == set(HINTS)
    assert {recipe["train"]["epochs"] for recipe in recipes} == {100}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """50 images as three channels, normalised, and their labels."""
    train = load_dataset("digits", limit_train=50).train
    return ((train.images.float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous(), train.targets


@pytest.fixture(scope="module")
def teacher(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """Trained until it tells those images apart."""
    torch.manual_seed(1)
    model = timm.create_model("cifar_resnet10_xs", num_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images, targets = digits
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == targets).float().mean() > 0.9
    return model


@pytest.mark.parametrize("name", METHODS)
def test_a_method_lowers_its_own_loss(name: str, digits: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    torch.manual_seed(0)
    if name == "timm-token":
        student = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10, **TOKEN)
    else:
        student = timm.create_model("cifar_resnet10_xxs", num_classes=10)
    task = METHODS[name](student) if name == "ce" else METHODS[name](student, teacher)
    task.train()
    images, targets = digits
    if task.needs_unlabelled:
        targets = torch.full_like(targets, UNLABELLED)
    optimizer = torch.optim.Adam(task.trainable_module.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        result = task(images, targets)
        losses.append(result[OWN[name]].item())
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0], losses
