"""Folded batch norms: which, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import disk_kd  # noqa: F401  registers cifar_* with timm
from disk_kd.errors import ModelError
from disk_kd.teacher.features import forward_with_features
from disk_kd.teacher.fold import fold_batch_norms


def pixels(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """The model in eval mode with norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for norm in norms(model):
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


class Stage(nn.Module):
    """A convolution, its norm, and whatever a test does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class OutputReadTwice(Stage):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.norm(y)) + y.mean()


class ConvolutionCalledTwice(Stage):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x.flip(0))


class NormCalledTwice(Stage):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y + self.norm(y)


class ChangedInBetween(Stage):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu_())


class NormLookedInto(Stage):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.weight.mean()


class TwoNorms(Stage):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + self.other(y)


@pytest.mark.parametrize(
    ("name", "folded", "left"),
    [
        ("cifar_resnet10_s", 12, 0),
        ("resnet18", 20, 0),
        ("resnet26d", 31, 0),
        ("mobilenetv2_100", 52, 0),
        ("tf_efficientnet_b0", 49, 0),
        ("test_byobnet", 14, 0),
        ("densenet121", 59, 62),
        ("convnext_atto", 0, 0),
    ],
)
def test_models_of_timm_give_the_same(name: str, folded: int, left: int) -> None:
    model = trained(timm.create_model(name, num_classes=5))
    names = {name for name, _ in model.named_modules()}
    images = pixels(batch=3)
    with torch.no_grad():
        logits, before = model(images), forward_with_features(model, images, ("last", "map"))
        assert fold_batch_norms(model, pixels()) == folded
        assert len(norms(model)) == left
        assert_close(model(images), logits)
        for ours, theirs in zip(
            forward_with_features(model, images, ("last", "map")).values(), before.values(), strict=True
        ):
            assert_close(ours, theirs)
    assert {info["module"] for info in model.feature_info} <= {name for name, _ in model.named_modules()}
    assert {name for name in names if not name.endswith((".drop", ".act"))} <= {n for n, _ in model.named_modules()}


def test_what_is_read_of_modules_and_stages_stays() -> None:
    model = trained(timm.create_model("cifar_resnet10_xxs", num_classes=5))
    names = ["layer1.0.conv1", "layer1.0.bn2", "layer2", *(f"stage{stage}" for stage in range(5))]
    with torch.no_grad():
        expected = forward_with_features(model, pixels(batch=3), names)
        assert fold_batch_norms(copy.deepcopy(model), pixels()) == 12
        assert fold_batch_norms(model, pixels(), names) == 11
        assert norms(model) == [model.get_submodule("layer1.0.bn1")]
        for name, output in forward_with_features(model, pixels(batch=3), names).items():
            assert_close(output, expected[name])


def test_a_norm_whose_inside_is_read_is_left_alone() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)))
    assert fold_batch_norms(model, pixels(), ["1.act"]) == 0


class StageAtConvolution(nn.Module):
    """A model whose first stage ends before its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Stage()
        self.body.conv = nn.Conv2d(4, 4, 1)
        self.feature_info = [{"num_chs": 4, "module": name} for name in ("stem", "norm", "body")]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(self.norm(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_a_stage_that_ends_before_its_norm_stays() -> None:
    model = trained(StageAtConvolution())
    with torch.no_grad():
        expected = forward_with_features(model, pixels(), ["stage0"])["stage0"]
        assert fold_batch_norms(model, pixels()) == 1
        assert norms(model) == [model.norm]
        assert_close(forward_with_features(model, pixels(), ["stage0"])["stage0"], expected)


def test_a_module_that_gives_nothing_is_named() -> None:
    model = trained(nn.ModuleDict({"used": Stage(), "idle": nn.ReLU()}))
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ModelError, match="module idle of ModuleDict gave 0 outputs, not one tensor"):
        fold_batch_norms(model, pixels(), ["idle"])


def test_a_transformer_stays_as_it_is() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5).eval()
    before = copy.deepcopy(model.state_dict())
    assert fold_batch_norms(model, pixels()) == 0
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "stage", [OutputReadTwice, ConvolutionCalledTwice, NormCalledTwice, ChangedInBetween, NormLookedInto, TwoNorms]
)
@torch.no_grad()
def test_a_pair_that_is_no_pair_is_left_alone_and_others_are_folded(stage: type[Stage]) -> None:
    model = trained(nn.Sequential(Stage(), nn.Conv2d(4, 3, 1), stage(), nn.AdaptiveAvgPool2d(4)))
    before, images = copy.deepcopy(model.state_dict()), pixels(8, batch=3)
    expected = model(images)
    assert fold_batch_norms(model, pixels(8)) == 1
    assert not norms(model[0])
    for name, value in model[2].state_dict().items():
        assert torch.equal(value, before[f"2.{name}"]), name
    assert_close(model(images), expected)


@torch.no_grad()
def test_a_weight_made_anew_for_each_call_is_left_alone() -> None:
    model = Stage()
    parametrizations.weight_norm(model.conv)
    assert fold_batch_norms(trained(model), pixels()) == 0


def test_a_norm_without_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert fold_batch_norms(model, pixels()) == 0


def test_a_norm_without_an_affine_part_is_folded() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)))
    expected = model(pixels())
    assert fold_batch_norms(model, pixels()) == 1
    assert_close(model(pixels()), expected)


def test_activation_and_dropout_of_a_norm_stay() -> None:
    norm = BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=lambda: nn.Hardtanh(-0.1, 0.1))
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), norm))
    expected = model(pixels())
    assert fold_batch_norms(model, pixels()) == 1
    assert list(model[1]) == [norm.drop, norm.act]
    assert_close(model(pixels()), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_memory_format_type_and_freezing_stay(dtype: torch.dtype) -> None:
    model = trained(timm.create_model("cifar_resnet10_xxs")).requires_grad_(False)
    model = model.to(dtype).to(memory_format=torch.channels_last)
    images = pixels()
    expected = model(images.to(dtype))
    assert fold_batch_norms(model, images) == 12
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.conv1.weight.is_contiguous()
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(dtype, False)}
    assert_close(model(images.to(dtype)), expected, 1e-6 if dtype == torch.float64 else 0.05)


def test_the_plain_model_in_a_compiled_one_is_folded() -> None:
    model = trained(timm.create_model("cifar_resnet10_xxs"))
    assert fold_batch_norms(torch.compile(model, backend="eager"), pixels()) == 12
    assert not norms(model)


def test_a_model_in_train_mode_is_refused() -> None:
    with pytest.raises(ModelError, match="Stage is in train mode, where batch norms cannot be folded"):
        fold_batch_norms(Stage(), pixels())
