"""Maps and pooled features, over several families of timm models."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from disk_kd.errors import ModelError
from disk_kd.teacher import Teacher, feature_shapes, feature_sizes, forward_with_features

FAMILIES = ("test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "test_vit")
SIZE = 160


class Plain(nn.Module):
    """A model with timm's `feature_info` and heads, and no `forward_intermediates`."""

    def __init__(self, layout: str = "NCHW") -> None:
        super().__init__()
        self.num_classes = 3
        self.layout = layout
        self.stem = nn.Conv2d(2, 4, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 3)
        self.feature_info = [
            {"num_chs": 4, "reduction": 1, "module": "stem"},
            {"num_chs": 4, "reduction": 1, "module": "body"},
            {"num_chs": 6, "reduction": 1, "module": "last"},
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the helpers' map, of one epoch."""
    found = forward_with_features(model, images, ("logits", "map"))
    return found["logits"], found["map"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pass_with_a_map_gives_the_models_own_logits(name: str, images: Tensor) -> None:
    model = timm.create_model(name, num_classes=7).eval()
    logits, feature_map = outputs(model, images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=0)
    assert feature_map.ndim == 4
    assert feature_map.shape[:2] == (2, model.feature_info[-2]["num_chs"])


def test_the_map_is_the_output_of_the_stage_before_the_last() -> None:
    model = timm.create_model("resnet18", num_classes=5).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
    expected = model.layer3(model.layer2(model.layer1(x)))
    torch.testing.assert_close(outputs(model, images)[1], expected, rtol=0, atol=0)


def test_regions_are_classified_as_images_are() -> None:
    """Cells row by row, each the average of its logits: the classifier is linear."""
    model = timm.create_model("cifar_resnet10_xs", num_classes=5).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = forward_with_features(model, images, ("logits", "last", "regions1-2", "stage1"))
    regions, last = found["regions1-2"], found["last"]
    assert regions.shape == (3, 5, 5)
    classifier = model.get_classifier()
    places = classifier(last.permute(0, 2, 3, 1))  # the logits of each place, (B, 4, 4, classes)
    torch.testing.assert_close(regions[:, 0], found["logits"])
    cells = [places[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)]
    torch.testing.assert_close(regions[:, 1:], torch.stack(cells, dim=1))
    alone = forward_with_features(model, images, ("regions1-2",))
    assert torch.equal(alone["regions1-2"], regions)
    with pytest.raises(ModelError, match="ResNet has no output or module 'regions0'"):
        forward_with_features(model, images, ("regions0",))


def test_a_model_without_intermediates_gives_its_map_through_its_stage() -> None:
    model = Plain().eval()
    images = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    logits, feature_map = outputs(model, images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=0)
    torch.testing.assert_close(feature_map, model.body(model.stem(images)), rtol=0, atol=0)
    assert not model.body._forward_hooks


def test_gradients_reach_the_student_through_logits_and_map(images: Tensor) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    logits, feature_map = outputs(model, images)
    (feature_map.square().mean() + 0 * logits.sum()).backward()
    assert model.conv1[0].weight.grad.abs().sum() > 0
    assert model.get_classifier().weight.grad.abs().sum() == 0


def test_a_compiled_model_gives_the_same(images: Tensor) -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    compiled = torch.compile(model, backend="eager")
    for one, other in zip(outputs(compiled, images), outputs(model, images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_pass_with_a_map_compiles_in_one_graph(images: Tensor) -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    compiled = torch.compile(outputs, backend="eager", fullgraph=True)
    for one, other in zip(compiled(model, images), outputs(model, images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_those_of_the_outputs(name: str) -> None:
    model = timm.create_model(name, num_classes=7)
    features = model.forward_features(torch.zeros(1, 3, SIZE, SIZE))
    assert feature_sizes(model) == {
        "logits": 7,
        "pooled": model.forward_head(features, pre_logits=True).shape[1],
        "map": model.feature_info[-2]["num_chs"],
    }


def test_sizes_leave_the_model_as_it_was() -> None:
    model = timm.create_model("test_resnet", num_classes=7).train()
    model.layer2.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    feature_sizes(model, image_size=32)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_sizes_know_channels_and_a_fixed_image_size() -> None:
    assert feature_sizes(timm.create_model("test_resnet", in_chans=1, num_classes=2))["logits"] == 2
    assert feature_sizes(Plain(), image_size=8) == {"logits": 3, "pooled": 6, "map": 4}
    vit = timm.create_model("test_vit", img_size=32, num_classes=2)
    assert feature_sizes(vit, image_size=48)["map"] == 64


def test_sizes_of_a_teacher_are_those_of_its_model() -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    assert feature_sizes(Teacher.of(model, model)) == feature_sizes(model)


def test_what_a_model_lacks_is_named() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ModelError, match="Linear has no forward_features and no forward_head and no feature_info"):
        outputs(nn.Linear(3, 3), x)
    model = Plain()
    model.feature_info = model.feature_info[:1]
    with pytest.raises(ModelError, match="Plain has one stage, so no map before the last"):
        outputs(model, x)
    model.feature_info = [{"num_chs": 4, "module": "nowhere"}] * 2
    with pytest.raises(ModelError, match="Plain has no module nowhere"):
        outputs(model, x)


def test_a_map_of_other_channels_than_announced_is_refused() -> None:
    model = Plain()
    model.feature_info[-2]["num_chs"] = 5
    with pytest.raises(ModelError, match=r"body of Plain gives no map \(B, 5, H, W\)"):
        outputs(model, torch.zeros(1, 2, 8, 8))


def test_a_transformers_map_is_laid_out_as_its_image() -> None:
    model = timm.create_model("test_vit", img_size=(32, 64), num_classes=2).eval()
    images = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    feature_map = outputs(model, images)[1]
    rows, columns = feature_map.shape[2:]
    assert columns == 2 * rows
    tokens = model.forward_intermediates(images, indices=[-2], output_fmt="NLC", intermediates_only=True)[0]
    assert math.prod(feature_map.shape[2:]) == tokens.shape[1]
    torch.testing.assert_close(feature_map[0, :, 1, 0], tokens[0, columns], rtol=0, atol=0)


def test_outputs_have_names() -> None:
    model = timm.create_model("cifar_resnet10_xxs", num_classes=5).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    stages = len(model.feature_info)
    names = ["logits", "pooled", "last", "map", "stage0", f"stage{stages - 2}", model.feature_info[0]["module"]]
    outputs = forward_with_features(model, images, names)
    assert list(outputs) == names
    assert torch.equal(outputs["logits"], model(images))
    assert torch.equal(outputs["last"], model.forward_features(images))
    assert torch.equal(outputs["pooled"], model.forward_head(outputs["last"], pre_logits=True))
    assert torch.equal(outputs["map"], outputs[f"stage{stages - 2}"])
    assert torch.equal(outputs["stage0"], outputs[model.feature_info[0]["module"]])
    shapes = feature_shapes(model, names, image_size=16)
    assert shapes == {name: tuple(output.shape[1:]) for name, output in outputs.items()}


def test_a_model_says_what_its_map_is() -> None:
    model = timm.create_model("cifar_resnet8x4", num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    outputs = forward_with_features(model, images, ("logits", "map", "last"))
    assert torch.equal(outputs["map"], outputs["last"])
    assert outputs["map"].shape == (2, 256, 8, 8)
    assert feature_sizes(model)["map"] == 256


def test_a_module_of_any_network_can_be_read() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    outputs = forward_with_features(model, torch.ones(3, 3, 2, 2), ("logits", "1"))
    assert outputs["1"].shape == (3, 4)
    with pytest.raises(ModelError, match=r"Sequential has no output or module '7'; give pooled, last, map, stage0"):
        forward_with_features(model, torch.ones(3, 3, 2, 2), ("7",))
    with pytest.raises(ModelError, match="has stage0 to stage"):
        forward_with_features(timm.create_model("cifar_resnet10_xxs"), torch.ones(1, 3, 8, 8), ("stage9",))
