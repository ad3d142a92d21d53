"""What all models of the benchmark share: timm's conventions, and what the teacher's room asks of a model."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from model_cases import GOLDEN
from test_resnet import assert_torchs_default, images, write_deterministic_weights
from torch import nn

from disk_kd.errors import ModelError
from disk_kd.models import StagedNet, create_model
from disk_kd.teacher import feature_sizes, forward_with_features
from disk_kd.teacher.fold import fold_batch_norms

OUTPUTS = ("logits", "map")
PREACT = ["cifar_wrn_16_2", "cifar_wrn_40_1", "cifar_wrn_40_2"]
NAMES = [*GOLDEN, "cifar_vgg8", "cifar_vgg13", *PREACT]

# One of each family: channels and reductions of its maps.
FAMILIES = {
    "cifar_resnet20": ([16, 16, 32, 64], [1, 1, 2, 4]),
    "cifar_wrn_16_2": ([16, 32, 64, 128], [1, 1, 2, 4]),
    "cifar_wrn_16_2_postact": ([16, 32, 64, 128], [1, 1, 2, 4]),
    "cifar_mobilenetv2": ([16, 12, 16, 48, 160], [2, 2, 4, 8, 16]),
    "cifar_shufflenetv2": ([24, 116, 232, 464], [1, 2, 4, 8]),
    "cifar_vgg8": ([64, 128, 256, 512, 512], [1, 2, 4, 8, 8]),
}
FIRST_CONV = {"cifar_mobilenetv2": "conv1.0", "cifar_vgg8": "block0.0"}
CLASSIFIER = {"cifar_mobilenetv2": "classifier.0", "cifar_shufflenetv2": "linear", "cifar_vgg8": "classifier"}


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options).double().eval()


def small(**options):
    return build("cifar_resnet8x4", **options)


def test_the_benchmark_is_there():
    assert len(NAMES) == 17
    assert set(NAMES) <= set(timm.list_models("cifar_*"))


@pytest.mark.parametrize("name", FAMILIES)
def test_cfg_is_cifar_100s_and_names_the_ends(name):
    model = timm.create_model(name, in_chans=2, num_classes=5)
    cfg = model.default_cfg
    assert (cfg["num_classes"], cfg["input_size"]) == (100, (3, 32, 32))
    assert cfg["mean"] == pytest.approx((0.50706, 0.48667, 0.44078), abs=1e-5)
    assert cfg["std"] == pytest.approx((0.26745, 0.25647, 0.27608), abs=1e-5)
    assert cfg["pool_size"] == model.forward_features(images(chans=2).float()).shape[2:]
    assert cfg["first_conv"] == FIRST_CONV.get(name, "conv1")
    assert cfg["classifier"] == CLASSIFIER.get(name, "fc")
    assert model.get_submodule(cfg["first_conv"]).in_channels == model.in_chans == 2
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier().out_features == model.num_classes == 5


def test_pretrained_is_refused_not_random():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for cifar_resnet8x4"):
        timm.create_model("cifar_resnet8x4", pretrained=True)


def test_a_wrong_option_is_named():
    with pytest.raises(ModelError, match="'drop_pat_rate'; nearest: drop_rate"):
        create_model("cifar_vgg8", num_classes=3, drop_pat_rate=0.1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [8, 32, 33, 64])
@pytest.mark.parametrize("chans", [1, 3])
def test_any_image(name, size, chans):
    model = build(name, num_classes=7, in_chans=chans)
    x = images(chans=chans, size=size)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape[:2] == (2, model.num_features)
    assert model.train()(x).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_is_features_then_head(name):
    model = build(name)
    features = model.forward_features(images())
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(images()), model.get_classifier()(pooled))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_classes_returns_pooled_features(name):
    model = build(name, num_classes=0)
    torch.testing.assert_close(model(images(size=16)), model.forward_features(images(size=16)).mean((2, 3)))
    assert not list(model.get_classifier().parameters())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("pool", "factor"), [("avg", 1), ("max", 1), ("catavgmax", 2)])
def test_reset_classifier(name, pool, factor):
    model = build(name)
    keys = list(model.state_dict())
    model.reset_classifier(5, global_pool=pool)
    assert model(images(size=16)).shape == (2, 5)
    assert (model.num_classes, model.head_hidden_size) == (5, factor * model.num_features)
    assert model.get_classifier().weight.dtype == torch.float64
    assert list(model.state_dict()) == keys
    assert not any(module.training for module in model.modules())


def test_reset_classifier_keeps_the_pooling():
    model = small(global_pool="max")
    model.reset_classifier(0)
    torch.testing.assert_close(model(images()), model.forward_features(images()).amax((2, 3)))


def test_no_pooling_returns_the_map():
    assert small(num_classes=0, global_pool="")(images()).shape == (2, 256, 8, 8)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
def test_features_only(name, kind):
    model = timm.create_model(name, features_only=True, feature_cls=kind).eval()
    channels, reductions = FAMILIES[name]
    assert (model.feature_info.channels(), model.feature_info.reduction()) == (channels, reductions)
    maps = model(torch.zeros(1, 3, 32, 32))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [m.shape[1] for m in maps] == channels
    assert [32 // m.shape[2] for m in maps] == reductions


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_info_names_the_modules_of_the_maps(name):
    model = build(name)
    maps = model.forward_intermediates(images(size=16), intermediates_only=True)
    seen = {}
    for info in model.feature_info:
        module = info["module"]
        model.get_submodule(module).register_forward_hook(lambda m, x, y, module=module: seen.update({module: y}))
    model(images(size=16))
    for info, expected in zip(model.feature_info, maps, strict=True):
        torch.testing.assert_close(seen[info["module"]], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("indices", "chosen"), [(None, range(4)), (2, (2, 3)), ([3, 0], (0, 3)), ([-2], (2,))])
def test_forward_intermediates_indices(indices, chosen):
    model = small()
    x = images(size=16)
    every = model.forward_intermediates(x, intermediates_only=True)
    last, maps = model.forward_intermediates(x, indices)
    assert len(maps) == len(chosen)
    assert all(torch.equal(m, every[i]) for m, i in zip(maps, chosen, strict=True))
    torch.testing.assert_close(last, model.forward_features(x))


@pytest.mark.parametrize(("name", "width"), [("cifar_mobilenetv2", 1280), ("cifar_shufflenetv2", 1024)])
def test_the_final_convolution_is_no_stage(name, width):
    model = build(name)
    features, maps = model.forward_intermediates(images(size=16), 1)
    assert features.shape[1] == model.num_features == width
    assert maps[0].shape[1] == model.feature_info[-1]["num_chs"] < width
    assert model.forward_intermediates(images(size=16), 1, stop_early=True)[0].shape == maps[0].shape


def test_forward_intermediates_stops_early():
    model = small()
    ran = []
    model.layer3.register_forward_hook(lambda *_: ran.append("layer3"))
    last, maps = model.forward_intermediates(images(), [0, 2], stop_early=True)
    assert last is maps[-1]
    assert last.shape == (2, 128, 16, 16)
    assert not ran


def test_forward_intermediates_refuses_other_layouts():
    with pytest.raises(ModelError, match="must be 'NCHW' for a StagedNet, not 'NLC'"):
        small().forward_intermediates(images(), output_fmt="NLC")


def test_dropout_acts_in_training_alone():
    model = small(drop_rate=0.5)
    features = torch.ones(1, 256, 4, 4, dtype=torch.float64)
    assert torch.equal(model.forward_head(features, pre_logits=True), torch.ones(1, 256, dtype=torch.float64))
    dropped = model.train().forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_changes_nothing(name):
    model = build(name)
    expected = model(images(size=16))
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images(size=16).to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = build(name, num_classes=4)
    model(images(size=8)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_compiles_without_a_graph_break(name):
    model = build(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(size=16)), model(images(size=16)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pass_with_a_map_compiles_in_one_graph(name):
    model = build(name)
    compiled = torch.compile(forward_with_features, backend="eager", fullgraph=True)
    expected = forward_with_features(model, images(size=16), OUTPUTS)
    torch.testing.assert_close(compiled(model, images(size=16), OUTPUTS), expected)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_the_pass_with_a_map(name):
    model = build(name, num_classes=7)
    found = forward_with_features(model, images(size=16), OUTPUTS)
    torch.testing.assert_close(found["logits"], model(images(size=16)), rtol=0, atol=0)
    sizes = {"logits": 7, "pooled": model.num_features, "map": found["map"].shape[1]}
    assert feature_sizes(model) == sizes
    torch.testing.assert_close(found["map"], model.forward_features(images(size=16)), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_folds_every_norm_behind_a_convolution(name):
    model = build(name)
    write_deterministic_weights(model)
    expected = model(images(size=16))
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if name in PREACT:  # the first norm of a block reads a sum, or the stem's map, which others may read
        norms = [path for path in norms if path.endswith("bn2")]
    assert fold_batch_norms(model, images(size=16)) == len(norms)
    torch.testing.assert_close(model(images(size=16)), expected)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"cifar_shufflenetv2"}))
def test_convolutions_start_at_he_scale(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    assert isinstance(model, StagedNet)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    weight = max((module.weight for module in convolutions), key=torch.numel)
    fan_out = weight.shape[0] * weight[0, 0].numel()
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert not any(module.bias.any() for module in convolutions if module.bias is not None)


def test_a_fresh_shufflenet_is_torchs():
    torch.manual_seed(0)
    assert_torchs_default(timm.create_model("cifar_shufflenetv2"))


@pytest.mark.parametrize("name", PREACT)
def test_the_classifier_of_a_fresh_wrn_has_no_bias(name):
    model = timm.create_model(name)
    assert not model.fc.bias.any()
    assert model.fc.weight.abs().max() <= 1 / math.sqrt(model.num_features)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_of_sgd_lower_the_loss(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
