"""Models by name: what epochs through, every error, and the count of multiply-adds."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from disk_kd.errors import CheckpointError, ModelError
from disk_kd.models import check_logits, create_model, multiply_adds, save_state_dict


def test_ours_and_timms_by_name():
    assert create_model("cifar_resnet10_xxs", num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    model = create_model("resnet10t", num_classes=3, in_chans=1, drop_rate=0.25)
    assert (model.num_classes, model.in_chans, model.drop_rate) == (3, 1, 0.25)


def test_local_dir_passes_through(tmp_path):
    model = timm.create_model("cifar_resnet10_xxs", num_classes=6)
    timm.models.save_for_hf(model, tmp_path)
    found = create_model(f"local-dir:{tmp_path}", num_classes=6, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))


def test_weights_are_loaded(tmp_path):
    model = create_model("cifar_resnet10_xxs", num_classes=6)
    save_state_dict(tmp_path / "w.safetensors", model.state_dict())
    found = create_model("cifar_resnet10_xxs", num_classes=6, weights=tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="the weights have 6 classes, the model 9"):
        create_model("cifar_resnet10_xxs", num_classes=9, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnet10_ss", {}, r"no model is named 'cifar_resnet10_ss'; nearest: cifar_resnet10_s, "),
        ("resnet18.a9_in1k", {}, r"resnet18 has no weights named 'resnet18.a9_in1k'; nearest: .*resnet18.a1_in1k"),
        ("cifar_resnet10_s.x", {}, r"has no weights named 'cifar_resnet10_s.x'; nearest: cifar_resnet10_s$"),
        ("cifar_resnet10_s", {"drop_path_rate": 0.1}, r"'drop_path_rate'; nearest: drop_rate"),
        ("resnet18", {"drop_pat_rate": 0.1}, r"'drop_pat_rate'; nearest: drop_path_rate"),
        ("cifar_resnet10_s", {"global_pool": "mean"}, r"cannot be built with .*Invalid pool type: mean"),
        ("cifar_resnet10_s", {"num_classes": -1}, r"expected num_classes >= 0 .*not num_classes=-1, in_chans=3"),
        ("cifar_resnet10_s", {"in_chans": 0}, r"expected .* in_chans >= 1, not num_classes=10, in_chans=0"),
        ("cifar_resnet10_m", {"pretrained": True}, r"No pretrained weights exist .*give a local file as weights="),
        ("cifar_resnet10_m", {"pretrained": True, "weights": "x"}, r"exclude each other; give one"),
        ("local-dir:no/such", {}, r"local-dir:no/such: .* cannot be fetched .*give a local file as weights="),
    ],
)
def test_errors_are_one_line_with_advice(name, options, message):
    with pytest.raises(ModelError, match=message) as caught:
        create_model(name, **{"num_classes": 10, **options})
    assert "\n" not in str(caught.value)


def test_a_dead_network_is_said_in_one_line(tmp_path):
    refused = {"url": "http://127.0.0.1:9/weights.pth"}
    with pytest.raises(ModelError, match=r"pretrained weights cannot be fetched .*give a local file as weights="):
        create_model(
            "cifar_resnet10_xs",
            num_classes=100,
            pretrained=True,
            pretrained_cfg_overlay=refused,
            cache_dir=tmp_path,
        )


def test_multiply_adds_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 7))
    assert multiply_adds(model, (3, 8, 8)) == 16 * 5 * 27 + 80 * 7


def test_multiply_adds_of_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x):
            x = self.proj(x)
            return F.scaled_dot_product_attention(x, x, x)

    tokens, width, heads = 6, 4, 2
    assert multiply_adds(Attention(), (heads, tokens, width)) == heads * (
        tokens * width * width + 2 * tokens * tokens * width
    )


def test_multiply_adds_leaves_the_model_as_it_was():
    model = create_model("cifar_resnet10_xxs", num_classes=10).train()
    model.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    multiply_adds(model, (3, 16, 16))
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_gives_no_logits_is_named_and_what_does_is_left_as_it_was():
    model = create_model("cifar_resnet10_xxs", num_classes=10).train()
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    check_logits(model, (3, 16, 16), 10)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ModelError, match=r"ResNet gives \(2, 10\) for two images, not logits of shape \(2, 7\)"):
        check_logits(model, (3, 16, 16), 7)
    features = create_model("resnet18", num_classes=10, features_only=True)
    with pytest.raises(ModelError, match=r"FeatureListNet gives \(2, 64, 32, 32\) for two images"):
        check_logits(features, (3, 64, 64), 10)
    with pytest.raises(ModelError, match=r"does not take an image of shape \(1, 16, 16\)"):
        check_logits(model, (1, 16, 16), 10)


def test_multiply_adds_refuses_a_wrong_image():
    model = create_model("cifar_resnet10_xxs", num_classes=10)
    with pytest.raises(ModelError, match=r"ResNet does not take an image of shape \(1, 32, 32\) \(C, H, W\)"):
        multiply_adds(model, (1, 32, 32))
