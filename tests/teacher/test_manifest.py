"""Hashes of weights, and the comparison of manifests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from disk_kd.errors import CheckpointError
from disk_kd.teacher import Teacher, teacher_facts, weights_hash
from disk_kd.teacher.hashing import structure_hash
from disk_kd.teacher.manifest import read_manifest, refuse_difference


def linear(weight: float = 1.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    layer = nn.Linear(2, 3, bias=False).to(dtype)
    nn.init.constant_(layer.weight, weight)
    return layer


def test_the_hash_is_the_same_on_every_machine() -> None:
    expected = "56dd515d5df0d2a110f9becf274f4d012e4e4a6ca1a9947387fac5ce55f28552"
    assert weights_hash(linear()) == expected


def test_the_hash_knows_values_types_shapes_and_names() -> None:
    transposed = nn.Linear(3, 2, bias=False)
    nn.init.constant_(transposed.weight, 1.0)
    others = [
        linear(1.5),
        linear(dtype=torch.float64),
        linear(dtype=torch.bfloat16),
        transposed,
        nn.ModuleList([linear()]),
    ]
    assert len({weights_hash(model) for model in (linear(), *others)}) == 6


def test_the_hash_sees_statistics_and_single_numbers() -> None:
    norm = nn.BatchNorm2d(2)
    before = weights_hash(norm)
    norm.running_mean += 1
    between = weights_hash(norm)
    norm.num_batches_tracked += 1
    assert len({before, between, weights_hash(norm)}) == 3


def test_the_hash_does_not_see_wrappers_or_memory_layout() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    plain = weights_hash(model)
    assert weights_hash(torch.compile(model, backend="eager")) == plain
    assert weights_hash(model.to(memory_format=torch.channels_last)) == plain


class Scaled(nn.Module):
    """Computes by settings of its own."""

    def __init__(self, act: object, scale: float = 1.0) -> None:
        super().__init__()
        self.act, self.scale, self.fc = act, scale, linear()


def test_the_structure_tells_models_of_equal_weights_apart() -> None:
    options = [{}, {"act_layer": "gelu"}, {"norm_layer": partial(nn.BatchNorm2d, eps=0.1)}]
    models = [timm.create_model("resnet10t", num_classes=3, **each) for each in options]
    settings = [(F.relu, 1.0), (F.gelu, 1.0), (F.relu, 2.0)]
    settings += [(partial(F.gelu, approximate=kind), 1.0) for kind in ("none", "tanh")]
    own = [Scaled(*each) for each in settings]
    assert len({structure_hash(model) for model in (*models, *own)}) == 8
    again = timm.create_model("resnet10t", num_classes=3).eval().requires_grad_(False)
    assert structure_hash(torch.compile(again, backend="eager")) == structure_hash(models[0])


def test_facts_name_what_the_teacher_sees() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    facts = teacher_facts(Teacher(model, input_mean=(0.1,) * 3, input_std=(0.2,) * 3, image_size=8))
    assert facts == {
        "teacher_sha256": weights_hash(model),
        "teacher_structure_sha256": structure_hash(model),
        "precision": "fp32",
        "teacher_mean": (0.5, 0.5, 0.5),
        "teacher_std": (0.5, 0.5, 0.5),
        "teacher_image_size": (8, 8),
        "input_mean": (0.1, 0.1, 0.1),
        "input_std": (0.2, 0.2, 0.2),
    }


def test_the_first_difference_is_named_with_both_values() -> None:
    stored = {"seed": 0, "augment": {"crop": 4, "flip": True}}
    refuse_difference(Path("here"), stored, {"seed": 0, "other": 1}, ["seed"])
    with pytest.raises(CheckpointError, match=r"here was made with augment.crop = 4, this run has 2; delete it"):
        refuse_difference(Path("here"), stored, {"augment": {"crop": 2, "flip": False}}, ["augment"])
    with pytest.raises(CheckpointError, match=r"made with augment.cutout = None, this run has 16"):
        refuse_difference(Path("here"), stored, {"augment": {**stored["augment"], "cutout": 16}}, ["augment"])
    with pytest.raises(CheckpointError, match=r"made with augment.flip = True, this run has None"):
        refuse_difference(Path("here"), stored, {"augment": {"crop": 4}}, ["augment"])
    with pytest.raises(CheckpointError, match=r"made with augment = \{.*\}, this run has none"):
        refuse_difference(Path("here"), stored, {"augment": "none"}, ["augment"])


def test_no_manifest_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no teacher store at .*; build it"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "vie')
    with pytest.raises(CheckpointError, match=r"is damaged \(manifest.json: .*\); delete it"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(CheckpointError, match="made with format = 0, this run has 2"):
        read_manifest(tmp_path)
