"""Wide ResNets: parity with the released networks, and the benchmark's against its formula and another library's.

What all families share is in test_staged.
"""

from __future__ import annotations

import re

import pytest
import timm
import torch
from model_cases import facts, names, outputs, released_facts, released_outputs
from test_resnet import images, write_deterministic_weights
from torch.nn import functional as F
from torchdistill.models.classification.wide_resnet import wide_resnet

from disk_kd.errors import CheckpointError
from disk_kd.models import load_weights

POSTACT, WITH_OUTPUTS = names("cifar_wrn")
BENCHMARK = {
    "cifar_wrn_16_2": (16, 2, 703_284),
    "cifar_wrn_40_1": (40, 1, 569_780),
    "cifar_wrn_40_2": (40, 2, 2_255_156),
}


@pytest.mark.parametrize("name", POSTACT)
def test_parameters_keys_shapes_and_cost_are_the_released_ones(name):
    assert facts(name) == released_facts(name)


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_are_the_released_ones(name):
    assert outputs(name) == pytest.approx(released_outputs(name), rel=1e-9)


@pytest.mark.parametrize("name", BENCHMARK)
def test_depth_counts_the_convolutions_of_a_wrn(name):
    """As the paper counts: one shortcut of each stage, the stem, and two of each block."""
    depth = BENCHMARK[name][0]
    model, postact = timm.create_model(name), timm.create_model(f"{name}_postact")
    for stages in ("block{}.layer", model), ("layer{}", postact):
        blocks = sum(len(stages[1].get_submodule(stages[0].format(index))) for index in (1, 2, 3))
        assert 2 * blocks + 1 + 3 == depth


def preactivated(name):
    """A model of the benchmark, float64, with weights that differ in every number."""
    model = timm.create_model(name).double().eval()
    write_deterministic_weights(model)
    return model


def as_torchdistill(key):
    """The key that torchdistill's network has for a weight of ours."""
    return re.sub(r"block(\d)\.layer", r"layer\1", key).replace("convShortcut", "shortcut.0")


@pytest.mark.parametrize("name", BENCHMARK)
@torch.no_grad()
def test_the_benchmarks_network_is_torchdistills(name):
    """But for the shortcut where shapes change, which torchdistill takes before the norm and the ReLU of its block."""
    depth, widen, parameters = BENCHMARK[name]
    model = preactivated(name)
    theirs = wide_resnet(depth, widen, dropout_p=0.0, num_classes=100, pretrained=False, progress=False).double().eval()
    theirs.load_state_dict({as_torchdistill(key): value for key, value in model.state_dict().items()})
    for counted in (model, theirs):
        assert sum(parameter.numel() for parameter in counted.parameters()) == parameters
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3):
        block = stage[0]
        if len(block.shortcut):
            block.shortcut.register_forward_pre_hook(lambda _, x, norm=block.bn1: F.relu(norm(x[0])))
    torch.testing.assert_close(model(images()), theirs(images()), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_benchmarks_maps_come_before_the_norm_and_the_relu():
    model = preactivated("cifar_wrn_16_2")
    last, (stem, *maps) = model.forward_intermediates(images())
    torch.testing.assert_close(stem, model.conv1(images()))
    assert all((stage_map < 0).any() for stage_map in maps)
    x = stem
    for index, stage_map in enumerate(maps, start=1):
        for block in model.get_submodule(f"block{index}.layer"):
            activated = F.relu(block.bn1(x))
            shortcut = x if block.convShortcut is None else block.convShortcut(activated)
            x = shortcut + block.conv2(F.relu(block.bn2(block.conv1(activated))))
        torch.testing.assert_close(stage_map, x)
    torch.testing.assert_close(last, F.relu(model.bn1(x)))
    torch.testing.assert_close(model(images()), model.fc(last.mean((2, 3))))


def test_keys_are_those_of_the_benchmarks_checkpoints():
    keys = list(timm.create_model("cifar_wrn_40_1").state_dict())
    assert keys[0] == "conv1.weight"
    assert {key.rpartition(".")[0] for key in keys if key.startswith("block2.layer.0.")} == {
        f"block2.layer.0.{part}" for part in ("bn1", "conv1", "bn2", "conv2", "convShortcut")
    }
    assert keys[-7:-2] == [f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var")] + [
        "bn1.num_batches_tracked"
    ]
    assert keys[-2:] == ["fc.weight", "fc.bias"]
    # A stage without a change of shapes has no convolution in its shortcut.
    assert not any("convShortcut" in key for key in keys if key.startswith("block1."))


@pytest.mark.parametrize(("ours", "theirs"), [("", "_postact"), ("_postact", "")])
def test_weights_of_the_other_form_are_told_in_one_line(tmp_path, ours, theirs):
    path = tmp_path / "w.pth"
    torch.save(timm.create_model(f"cifar_wrn_40_2{theirs}", num_classes=7).state_dict(), path)
    model = timm.create_model(f"cifar_wrn_40_2{ours}", num_classes=100)
    with pytest.raises(CheckpointError, match=rf"these weights are for cifar_wrn_40_2{theirs}$") as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
