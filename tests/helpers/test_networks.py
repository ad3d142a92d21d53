from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.helpers import HELPERS, make_helper

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "gates.json").read_text())["helpers"]
TWENTY_CLASSES = {"teacher-logits", "teacher-pooled-deep", "teacher-pooled-norm"}


def sizes_of(name: str) -> dict[str, int]:
    return {
        "num_classes": 20 if name in TWENTY_CLASSES else 10,
        "student_channels": 8,
        "teacher_channels": 12,
        "student_features": 16,
        "teacher_features": 24,
    }


def count_to(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def golden_outputs() -> dict[str, Tensor]:
    return {
        "student_map": torch.sin(0.05 * count_to(3, 8, 4, 4)),
        "teacher_map": torch.cos(0.03 * count_to(3, 12, 4, 4)),
        "teacher_pooled": torch.cos(0.11 * count_to(3, 24)),
        "teacher_logits": torch.cos(0.07 * count_to(3, 20)),
    }


def write_golden_weights(network: nn.Module) -> None:
    for k, (name, tensor) in enumerate(network.state_dict().items()):
        wave = torch.cos(0.7 * count_to(*tensor.shape) + k)
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.dim() >= 2:
            tensor.copy_(wave / math.sqrt(tensor[0].numel()))
        elif name.endswith(("running_var", "weight")):
            tensor.copy_(1 + 0.1 * wave)
        else:
            tensor.copy_(0.1 * wave)


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return make_helper(name, **sizes_of(name))


@pytest.mark.parametrize("name", HELPERS)
def test_parameters_and_outputs_are_the_released_ones(name: str) -> None:
    helper, golden = make(name).double().eval(), GOLDEN[name]
    shapes = [[key, list(tensor.shape)] for key, tensor in helper.state_dict().items()]
    assert shapes == golden["state_dict"]
    assert sum(p.numel() for p in helper.parameters()) == golden["params"]
    write_golden_weights(helper)
    assert helper(golden_outputs()).tolist() == pytest.approx(golden["out"], abs=1e-9)


@pytest.mark.parametrize("name", HELPERS)
def test_fresh_linear_layers_are_drawn_as_released(name: str) -> None:
    """Xavier's uniform and biases of 0.01 in the helpers of CIFAR, torch's default in those of ImageNet."""
    linear = [module for module in make(name).modules() if isinstance(module, nn.Linear)]
    assert linear
    for layer in linear:
        fan_out, fan_in = layer.weight.shape
        xavier = name in {"teacher-pooled", "teacher-map", "student-map", "both-maps"}
        bound = math.sqrt(6 / (fan_in + fan_out)) if xavier else 1 / math.sqrt(fan_in)
        assert (1 - 5 / layer.weight.numel()) * bound < layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=3 / math.sqrt(fan_in * fan_out))
        assert (layer.bias == 0.01).all() if xavier else (layer.bias.abs() <= bound).all()


@pytest.mark.parametrize("name", HELPERS)
def test_reads_what_it_needs_and_sends_no_gradient_back(name: str) -> None:
    helper = make(name).double()
    outputs = {key: value.requires_grad_() for key, value in golden_outputs().items() if key in helper.needs}
    helper(outputs).sum().backward()
    assert all(parameter.grad is not None for parameter in helper.parameters())
    assert all(value.grad is None for value in outputs.values())


@pytest.mark.parametrize("name", HELPERS)
def test_names_the_output_that_is_missing(name: str) -> None:
    helper = make(name).double()
    for missing in helper.needs:
        outputs = {key: value for key, value in golden_outputs().items() if key != missing}
        message = f"a helper reads '{missing}', got {', '.join(outputs)}; add '{missing}' to the outputs"
        with pytest.raises(ConfigError, match=message):
            helper(outputs)


@pytest.mark.parametrize("name", HELPERS)
def test_takes_half_precision_and_gives_float32_in_range(name: str) -> None:
    helper = make(name)
    outputs = {key: (100 * value).half() for key, value in golden_outputs().items()}
    with torch.autocast("cpu", torch.bfloat16):
        mixed_B = helper(outputs)
    for help_B in (helper(outputs), mixed_B):
        assert help_B.dtype == torch.float32
        assert help_B.shape == (3,)
        assert ((help_B >= 0) & (help_B <= 1)).all()


@pytest.mark.parametrize("name", HELPERS)
def test_trains_on_no_batch_of_one(name: str) -> None:
    helper = make(name)
    one = {key: value[:1].float() for key, value in golden_outputs().items()}
    with pytest.raises(ConfigError, match="trains on at least 2 images a batch, got 1; drop the last batch"):
        helper(one)
    assert helper.eval()(one).shape == (1,)


def test_all_names_stand_in_the_golden_file() -> None:
    assert set(GOLDEN) == set(HELPERS)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("teacher-mapp", {}, "unknown helper network 'teacher-mapp'; nearest: teacher-map"),
        ("teacher-map", {}, "needs num_classes, teacher_channels, teacher_features, got nothing"),
        (
            "student-map",
            {"num_classes": 10, "teacher_channels": 8},
            "helper 'student-map' needs student_channels, student_features, got num_classes, teacher_channels",
        ),
    ],
)
def test_refuses_names_and_missing_sizes(name: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_helper(name, **sizes)
