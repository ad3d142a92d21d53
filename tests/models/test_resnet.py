"""The CIFAR ResNets: parity with the released networks, and timm's conventions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters

from disk_kd.errors import ModelError
from disk_kd.models import ResNet, multiply_adds

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "models.json").read_text())["models"]
WITH_OUTPUTS = [name for name, golden in GOLDEN.items() if "logits_sum" in golden]
CHANNELS = {"cifar_resnet10_s": [8, 8, 16, 32, 64], "cifar_resnet50": [64, 256, 512, 1024, 2048]}


def expected_tensors(layers):
    """Write the golden file's layers out as the state dict's keys and shapes."""
    for name, shape in layers:
        if len(shape) == 1:
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"{name}.{part}", shape
            yield f"{name}.num_batches_tracked", []
        else:
            yield f"{name}.weight", shape
            if len(shape) == 2:
                yield f"{name}.bias", shape[:1]


def write_deterministic_weights(model):
    """Fill every tensor of a model from its place k in the state dict and the place a of each number."""
    for k, (key, value) in enumerate(model.state_dict().items()):
        wave = torch.cos(0.7 * torch.arange(value.numel(), dtype=torch.float64) + k).view(value.shape)
        if not value.is_floating_point():
            value.zero_()
        elif value.ndim >= 2:
            value.copy_(wave / math.sqrt(value[0].numel()))
        elif key.endswith(("weight", "running_var")):
            value.copy_(1 + 0.1 * wave)
        else:
            value.copy_(0.1 * wave)


def images(batch=2, chans=3, size=32):
    numel = batch * chans * size * size
    return torch.sin(0.01 * torch.arange(numel, dtype=torch.float64)).view(batch, chans, size, size)


def small(**options):
    torch.manual_seed(0)
    return timm.create_model("cifar_resnet10_xxs", **options).double().eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_keys_shapes_and_cost_are_the_released_ones(name):
    golden = GOLDEN[name]
    model = timm.create_model(name, num_classes=100)
    found = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert found == list(expected_tensors(golden["layers"]))
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert round(multiply_adds(model, (3, 32, 32)) / 1e6, 3) == golden["macs_M"]


@pytest.mark.parametrize("name", GOLDEN)
def test_pooled_and_helper_map_shapes_are_the_released_ones(name):
    with torch.device("meta"):
        last, maps = timm.create_model(name).forward_intermediates(torch.empty(2, 3, 32, 32))
    assert [2, last.shape[1]] == GOLDEN[name]["pooled_shape"]
    assert list(maps[-2].shape) == GOLDEN[name]["map_shape"]


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_are_the_released_ones(name):
    golden = GOLDEN[name]
    model = timm.create_model(name).double().eval()
    write_deterministic_weights(model)
    with torch.no_grad():
        last, maps = model.forward_intermediates(images())
        pooled = model.forward_head(last, pre_logits=True)
        logits = model(images())
    assert logits[0, :6].tolist() == pytest.approx(golden["logits_first6"], rel=1e-9)
    assert logits.sum().item() == pytest.approx(golden["logits_sum"], rel=1e-9)
    assert pooled.sum().item() == pytest.approx(golden["pooled_sum"], rel=1e-9)
    assert maps[-2].sum().item() == pytest.approx(golden["map_sum"], rel=1e-9)


def test_cfg_is_cifar_100s():
    cfg = timm.create_model("cifar_resnet10_xxs").default_cfg
    assert (cfg["num_classes"], cfg["input_size"], cfg["first_conv"], cfg["classifier"]) == (
        100,
        (3, 32, 32),
        "conv1",
        "linear",
    )
    assert cfg["mean"] == pytest.approx((0.50706, 0.48667, 0.44078), abs=1e-5)
    assert cfg["std"] == pytest.approx((0.26745, 0.25647, 0.27608), abs=1e-5)


def test_pretrained_is_refused_not_random():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for cifar_resnet10_xxs"):
        timm.create_model("cifar_resnet10_xxs", pretrained=True)


@pytest.mark.parametrize("size", [8, 16, 32, 64, 224])
@pytest.mark.parametrize("chans", [1, 3])
def test_any_image(size, chans):
    model = small(num_classes=7, in_chans=chans)
    x = images(chans=chans, size=size)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 16, size // 8, size // 8)
    assert model.train()(x).isfinite().all()


def test_forward_is_features_then_head():
    model = small()
    features = model.forward_features(images())
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(images()), model.get_classifier()(pooled))


def test_no_classes_returns_pooled_features():
    model = small(num_classes=0)
    torch.testing.assert_close(model(images()), model.forward_features(images()).mean((2, 3)))
    assert not list(model.get_classifier().parameters())


@pytest.mark.parametrize(("pool", "width"), [("avg", 16), ("max", 16), ("catavgmax", 32)])
def test_reset_classifier(pool, width):
    model = small()
    model.reset_classifier(5, global_pool=pool)
    assert model(images()).shape == (2, 5)
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (5, 16, width)
    assert model.linear.weight.dtype == torch.float64
    assert not any(module.training for module in model.modules())


def test_reset_classifier_keeps_the_pooling():
    model = small(global_pool="max")
    model.reset_classifier(0)
    torch.testing.assert_close(model(images()), model.forward_features(images()).amax((2, 3)))


def test_no_pooling_returns_the_map():
    model = small(num_classes=0, global_pool="")
    assert model(images()).shape == (2, 16, 4, 4)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
def test_features_only(name, kind):
    model = timm.create_model(name, features_only=True, feature_cls=kind).eval()
    assert model.feature_info.channels() == CHANNELS[name]
    maps = model(torch.zeros(1, 3, 32, 32))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == model.feature_info.reduction()


def test_feature_info_names_the_modules_of_the_maps():
    model = small()
    maps = model.forward_intermediates(images(), intermediates_only=True)
    seen = {}
    for info in model.feature_info:
        name = info["module"]
        model.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: seen.update({name: y}))
    model(images())
    for info, expected in zip(model.feature_info, maps, strict=True):
        torch.testing.assert_close(seen[info["module"]], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("indices", "chosen"), [(None, range(5)), (2, (3, 4)), ([3, 0], (0, 3)), ([-2], (3,))])
def test_forward_intermediates_indices(indices, chosen):
    model = small()
    every = model.forward_intermediates(images(), intermediates_only=True)
    last, maps = model.forward_intermediates(images(), indices)
    assert len(maps) == len(chosen)
    assert all(torch.equal(m, every[i]) for m, i in zip(maps, chosen, strict=True))
    torch.testing.assert_close(last, model.forward_features(images()))


def test_forward_intermediates_stops_early():
    model = small()
    ran = []
    model.layer4.register_forward_hook(lambda *_: ran.append("layer4"))
    last, maps = model.forward_intermediates(images(), [1, 3], stop_early=True)
    assert last is maps[-1]
    assert last.shape == (2, 16, 8, 8)
    assert not ran


def test_forward_intermediates_refuses_other_layouts():
    with pytest.raises(ModelError, match="must be 'NCHW' for a ResNet, not 'NLC'"):
        small().forward_intermediates(images(), output_fmt="NLC")


def test_dropout_acts_in_training_alone():
    model = small(drop_rate=0.5)
    features = torch.ones(1, 16, 4, 4, dtype=torch.float64)
    assert torch.equal(model.forward_head(features, pre_logits=True), torch.ones(1, 16, dtype=torch.float64))
    dropped = model.train().forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_channels_last_changes_nothing():
    model = small()
    expected = model(images())
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images().to(memory_format=torch.channels_last)), expected)


def test_bfloat16_stays_near():
    model = small().float()
    x = images().float()
    torch.testing.assert_close(model.bfloat16()(x.bfloat16()).float(), small()(images()).float(), rtol=0.1, atol=0.1)


def test_compiles_without_a_graph_break():
    model = small()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()))


@pytest.mark.parametrize("name", ["cifar_resnet10_xxs", "cifar_resnet50"])
def test_grad_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name).double()
        model.set_grad_checkpointing(enable)
        model(images(size=8)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(("coarse", "groups"), [(False, 16), (True, 4)])
def test_group_matcher_puts_every_parameter_in_order(coarse, groups):
    model = timm.create_model("cifar_resnet34")
    matched = group_parameters(model, model.group_matcher(coarse))
    names = [name for group in sorted(matched) for name in matched[group]]
    assert names == [name for name, _ in model.named_parameters()]
    assert matched[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert len(matched) == 1 + groups + 1


@pytest.mark.parametrize("name", ["cifar_resnet10_m", "cifar_resnet18", "cifar_resnet50"])
def test_fresh_layers_are_torchs(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    assert isinstance(model, ResNet)
    assert_torchs_default(model)


def assert_torchs_default(model):
    """Uniform within 1 / sqrt(fan_in), which its largest weight comes near and its spread confirms."""
    for module in model.modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        bound = 1 / math.sqrt(module.weight[0].numel())
        weights = module.weight.detach()
        tolerance = 3 / math.sqrt(weights.numel())
        assert (1 - tolerance) * bound < weights.abs().max().item() <= bound
        assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=tolerance)
        if module.bias is not None:
            assert module.bias.abs().max().item() <= bound


def test_a_step_of_sgd_lowers_the_loss():
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet10_xxxs", num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


ODD_BATCHES = """
import timm, torch, disk_kd
torch.set_num_threads(2)
model = timm.create_model("cifar_resnet10_s", num_classes=5).to(memory_format=torch.channels_last)
for batch in (25, 27, 99):
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for _ in range(20):
        model(images).sum().backward()
"""


def test_batches_that_threads_share_unequally_leave_memory_whole():
    """A process of its own, because what it guards against ends the process."""
    assert subprocess.run([sys.executable, "-c", ODD_BATCHES], capture_output=True).returncode == 0
