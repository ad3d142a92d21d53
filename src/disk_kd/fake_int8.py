"""Fake quantisation: a model computes in float, with weights and activations rounded as int8 inference rounds them.

Weights are symmetric with a scale for each output channel, w = s q with q in [-63, 63]. Batch norms are folded into
them first, with their running statistics. Activations are unsigned, x = s (q - z) with q in [0, 255] and one range for
each tensor. Biases are int32 with the scale of the products. Gradients pass through each rounding as if it was none
(straight-through), except where an activation is outside its range.

The 7-bit weights make sums of two products fit into 16 bits, so that all processors compute the same. Sources: Jacob
et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018
(arXiv:1712.05877); Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018
(arXiv:1806.08342), for the frozen statistics of batch norms.

Shapes: B batch, C channels, H height, W width, O outputs of a layer, P points where activations are rounded.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from disk_kd.errors import CheckpointError, ModelError

WEIGHT_LIMIT = 63
LEVELS = 255
AVERAGING = 0.01
"""Weight of a batch in the moving average of a range, as in torch's MovingAverageMinMaxObserver."""
LEAST_RANGE = 1e-4
_BIAS_LIMIT = 2**30
_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_CLIPPING = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_"}
"""Activations that a runtime merges into the rounding after them."""


@dataclass(frozen=True)
class Layer:
    """A layer that computes in int8.

    Attributes:
        name: of the convolution or linear layer.
        norm: the batch norm that is folded into it; None: there is none.
        point: place of its input among the points.
    """

    name: str
    norm: str | None
    point: int


@dataclass(frozen=True)
class Layout:
    """Where a model is quantised.

    Attributes:
        layers: those in int8.
        points: "in:NAME" for the input of a module, "out:NAME" for its output. There an activation is rounded.
        float_layers: the convolutions and linear layers that stay in float: of another class, unused or used twice.
    """

    layers: tuple[Layer, ...]
    points: tuple[str, ...]
    float_layers: tuple[str, ...]


class _Uses(TorchFunctionMode):
    """Notes which functions read each value: a tensor in one version, because some functions write into it."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[tuple[int, int], list[str]] = defaultdict(list)
        self._kept: list[Any] = []  # so that no tensor takes the id of another

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = {_value(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self._kept.append((args, result))
            for value in read:
                self.of[value].append(getattr(func, "__name__", ""))
        return result


def _value(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


@torch.no_grad()
def find_layout(model: nn.Module, shape: Sequence[int]) -> Layout:
    """Where to quantise a model, from one forward pass of a blank image.

    The input of each layer is rounded where a module gives it, else right before the layer. The output of a convolution
    is rounded too, unless only a ReLU reads it or it is the model's output.

    Args:
        model: maps images (B, C, H, W) to logits.
        shape: (C, H, W).

    Raises:
        ModelError: it has no layer that can be quantised.
    """
    inputs: dict[str, tuple[int, int]] = {}
    outputs: dict[str, tuple[int, int]] = {}
    makers: dict[tuple[int, int], str] = {}
    calls = Counter[str]()

    def before(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        calls[name] += 1
        if args and isinstance(args[0], Tensor):
            inputs[name] = _value(args[0])

    def after(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[name] = _value(output)
            makers.setdefault(_value(output), name)

    parts = dict(model.named_modules())
    hooks = [part.register_forward_pre_hook(partial(before, name)) for name, part in parts.items()]
    hooks += [part.register_forward_hook(partial(after, name)) for name, part in parts.items()]
    modes = {part: part.training for part in parts.values()}
    device = next(model.parameters()).device
    try:
        model.eval()
        with _Uses() as uses:
            result = model(torch.zeros(1, *shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes.items():
            part.training = mode
    final = {_value(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
    weighted = [name for name, part in parts.items() if isinstance(part, _LAYERS)]
    used = [name for name in weighted if type(parts[name]) in _LAYERS and calls[name] == 1 and name in inputs]
    if not used:
        raise ModelError(
            f"{type(model).__name__} has no convolution and no linear layer, so there is nothing to quantise; leave"
            " train.quantise out"
        )
    single = {name: len(uses.of[outputs[name]]) == 1 for name in used}
    convolved = {outputs[name]: name for name in used if isinstance(parts[name], nn.Conv2d) and single[name]}
    norms = {
        convolved[inputs[name]]: name
        for name, part in parts.items()
        if type(part) in _NORMS and calls[name] == 1 and inputs.get(name) in convolved and _has_statistics(part)
    }
    points, layers = list[str](), list[Layer]()

    def place(point: str) -> int:
        if point not in points:
            points.append(point)
        return points.index(point)

    for name in used:
        maker = makers.get(inputs[name], "")
        layers.append(Layer(name, norms.get(name), place(f"out:{maker}" if maker else f"in:{name}")))
        end = outputs[norms.get(name, name)]
        readers = uses.of[end]
        clipped = len(readers) == 1 and readers[0] in _CLIPPING
        if isinstance(parts[name], nn.Conv2d) and readers and not clipped and end not in final:
            place(f"out:{makers[end]}")
    return Layout(tuple(layers), tuple(points), tuple(name for name in weighted if name not in used))


def _has_statistics(norm: Any) -> bool:
    return norm.running_mean is not None and norm.weight is not None


class FakeInt8(nn.Module):
    """The ranges of a model's activations, and the rounding of models that use them.

    Args:
        layout: of the models.

    Attributes:
        low, high: (P,) the ranges. They contain 0. Both are 0 before the first batch.
        active: whether attached models round. Otherwise they compute as without this.
    """

    low: Tensor
    high: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout, self.active = layout, False
        self.register_buffer("low", torch.zeros(len(layout.points)))
        self.register_buffer("high", torch.zeros(len(layout.points)))

    def attach(self, model: nn.Module) -> None:
        """Make a model round while `active` is true. Its parameters, buffers and their names stay as they are.

        While the model is in train mode, the ranges follow its activations.
        """
        parts: dict[str, Any] = dict(model.named_modules())
        folded = {layer.norm for layer in self.layout.layers}
        for layer in self.layout.layers:
            norm = None if layer.norm is None else parts[layer.norm]
            part = parts[layer.name]
            part.forward = partial(self._layer, part, norm, layer.point)
        for name, part in parts.items():
            if type(part) in _NORMS and _has_statistics(part):
                part.forward = partial(self._norm, part, name in folded)
        _hook(self.layout.points, parts, lambda place, x: self._round(place, x, model.training))

    def record(self) -> dict[str, Any]:
        """The ranges as plain values, exact."""
        ranges = zip(self.layout.points, self.low.tolist(), self.high.tolist(), strict=True)
        return {"ranges": {point: [low, high] for point, low, high in ranges}}

    def load_record(self, record: Mapping[str, Any]) -> None:
        """Take over the ranges of a record.

        Raises:
            CheckpointError: it belongs to another model, or is damaged.
        """
        ranges = record.get("ranges")
        try:
            low_high = torch.tensor([ranges[point] for point in self.layout.points])  # type: ignore[index]
            if len(ranges) != len(self.layout.points) or low_high.shape[1:] != (2,):  # type: ignore[arg-type]
                raise ValueError("it has other points")
            if not (low_high.isfinite().all() and (low_high[:, 0] <= 0).all() and (low_high[:, 1] >= 0).all()):
                raise ValueError("its numbers are out of range")
        except (IndexError, KeyError, TypeError, ValueError, RuntimeError):
            raise CheckpointError(
                "the ranges of the activations in the weights' metadata do not fit the model; train it again"
            ) from None
        self.low.copy_(low_high[:, 0])
        self.high.copy_(low_high[:, 1])

    def scales(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point (P,) of each point."""
        scale = (self.high - self.low).clamp(min=LEAST_RANGE) / LEVELS
        return scale, (-self.low / scale).round().clamp(0, LEVELS).to(torch.int32)

    def _round(self, place: int, x: Tensor, observe: bool) -> Tensor:
        if not self.active:
            return x
        if observe:
            self._observe(place, x)
        scale, zero = self.scales()
        return torch.fake_quantize_per_tensor_affine(x.float(), scale[place], zero[place], 0, LEVELS)

    @torch.no_grad()
    def _observe(self, place: int, x: Tensor) -> None:
        low, high = torch.aminmax(x.float())
        first = self.low[place] == self.high[place]
        for kept, now in ((self.low, low.clamp(max=0)), (self.high, high.clamp(min=0))):
            kept[place] = torch.where(first, now, kept[place].lerp(now, AVERAGING))

    def _layer(self, part: Any, norm: Any, point: int, x: Tensor) -> Tensor:
        if not self.active:
            return cast(Tensor, type(part).forward(part, x))
        weight, bias = folded(part, norm)
        scales = weight_scales(weight, bias, self.scales()[0][point])
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT)
        if bias is not None:
            unit = scales * self.scales()[0][point]
            bias = bias + ((bias / unit).round() * unit - bias).detach()
        return _computed(part, x, rounded, bias)

    def _norm(self, norm: Any, is_folded: bool, x: Tensor) -> Tensor:
        if not self.active:
            return cast(Tensor, type(norm).forward(norm, x))
        if not is_folded:  # its statistics are frozen
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return cast(Tensor, norm.act(norm.drop(x))) if isinstance(norm, BatchNormAct2d) else x


def folded(part: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer and the batch norm after it, as one layer."""
    if norm is None:
        return part.weight.float(), part.bias
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = -norm.running_mean if part.bias is None else part.bias - norm.running_mean
    return part.weight * factor.view(-1, 1, 1, 1), norm.bias + shift * factor


@torch.no_grad()
def weight_scales(weight: Tensor, bias: Tensor | None, input_scale: Tensor) -> Tensor:
    """Scale (O,) of each output channel of a weight. It is large enough for its bias to fit into int32."""
    scales = weight.flatten(1).abs().amax(1) / WEIGHT_LIMIT
    if bias is not None:
        scales = scales.maximum(bias.abs() / (input_scale * _BIAS_LIMIT))
    return scales.clamp(min=1e-12)


def _computed(part: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(part, nn.Conv2d):
        return part._conv_forward(x, weight, bias)
    return F.linear(x, weight, bias)


def _hook(points: Sequence[str], parts: Mapping[str, Any], rounded: Any) -> None:
    """Round the activations at each point by `rounded(place, activations)`."""
    for place, point in enumerate(points):
        where, _, name = point.partition(":")
        if where == "in":
            parts[name].register_forward_pre_hook(lambda _, args, place=place: (rounded(place, args[0]), *args[1:]))
        else:
            parts[name].register_forward_hook(lambda _, args, output, place=place: rounded(place, output))


@torch.no_grad()
def int8_copy(model: nn.Module, fake: FakeInt8) -> nn.Module:
    """A copy of a model for tracing: int8 weights, int32 biases, and operators that quantise and dequantise.

    Args:
        model: the float model, not attached to `fake`, in eval mode on the CPU.
        fake: the ranges.
    """
    import torch.ao.quantization.fx._decomposed  # registers the operators

    model = copy.deepcopy(model)
    parts: dict[str, Any] = dict(model.named_modules())
    scales_P, zeros_P = fake.scales()
    merged = FakeInt8(fake.layout)
    merged.active = True
    for layer in fake.layout.layers:
        part, norm = parts[layer.name], None if layer.norm is None else parts[layer.norm]
        part.forward = partial(_int8_layer, part, *_integers(part, norm, scales_P[layer.point]))
        if norm is not None:
            norm.forward = partial(merged._norm, norm, True)
        for owner in [part] if norm is None else [part, norm]:
            owner.register_parameter("weight", None)
            owner.register_parameter("bias", None)
    scales, zeros = scales_P.tolist(), zeros_P.tolist()
    operators = torch.ops.quantized_decomposed

    def rounded(place: int, x: Tensor) -> Tensor:
        form = scales[place], zeros[place], 0, LEVELS, torch.uint8
        return cast(Tensor, operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *form), *form))

    _hook(fake.layout.points, parts, rounded)
    return model


def _integers(part: Any, norm: Any, input_scale: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Weight in int8 and bias in int32, each with its scales (O,)."""
    weight, bias = folded(part, norm)
    scales = weight_scales(weight, bias, input_scale)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT)
    shape = (-1, *[1] * (weight.dim() - 1))
    whole = (rounded / scales.view(shape)).round().to(torch.int8)
    if bias is None:
        return (whole, scales), None
    unit = scales * input_scale
    return (whole, scales), ((bias / unit).round().to(torch.int32), unit)


def _int8_layer(part: Any, weight: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor] | None, x: Tensor) -> Tensor:
    limits = {torch.int8: (-WEIGHT_LIMIT, WEIGHT_LIMIT), torch.int32: (-(2**31), 2**31 - 1)}

    def read(whole: Tensor, scales: Tensor) -> Tensor:
        zeros = torch.zeros_like(scales, dtype=torch.int64)
        operator = torch.ops.quantized_decomposed.dequantize_per_channel
        return cast(Tensor, operator(whole, scales, zeros, 0, *limits[whole.dtype], whole.dtype))

    return _computed(part, x, read(*weight), None if bias is None else read(*bias))
