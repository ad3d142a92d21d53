"""Static int8 quantisation after training: what is chosen, by which images, and what each layer costs.

The runtimes' own tools quantise: `disk_kd.export.int8_onnx` and `disk_kd.export.int8_torch`. This module has what they
share, and it knows no runtime.

Shapes: N images, B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from disk_kd.errors import ModelError
from disk_kd.logits import logits_of

CALIBRATION_IMAGES = 256
TIE_POINTS = 0.5
"""A later choice replaces an earlier one, which is faster, only if its top-1 is higher by more than this."""
COMPARED_IMAGES = 2000
"""Maximum number of validation images on which choices and layers are compared."""

Classifier = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to logits (B, K)."""


@dataclass(frozen=True)
class Choice:
    """A way to quantise a model.

    Attributes:
        name: description for the certificate.
        signed: whether activations are int8 rather than uint8. Both have a zero point of their own.
        weight_bits: bits of the weights, which are symmetric with a scale for each output channel.
        float_ends: whether the first and the last layer with weights stay in float.
        portable: whether its accuracy is the same on all processors. Others are measured and never chosen.
    """

    name: str
    signed: bool = False
    weight_bits: int = 8
    float_ends: bool = False
    portable: bool = True


class Quantiser(Protocol):
    """A model that is ready to be quantised by one of `choices`, the fastest first."""

    choices: Sequence[Choice]
    library: str

    def write(self, choice: Choice, path: Path) -> tuple[str, ...]:
        """Write the quantised model to `path` and return the names of the layers that stay in float."""


@dataclass(frozen=True)
class Measured:
    """A choice and how it did.

    Attributes:
        choice: the choice.
        float_layers: names of the layers in float.
        top1: percentage of the compared images that are classified correctly.
        agreement: percentage of the compared images with the same class as from the float student.
    """

    choice: Choice
    float_layers: tuple[str, ...]
    top1: float
    agreement: float


def percentage(hits: Tensor) -> float:
    """Percentage of true values."""
    return 100 * float(hits.double().mean())


def best_choice(measured: Sequence[Measured]) -> int:
    """Place of the choice to keep: the first portable one, unless a later one is over `TIE_POINTS` better in top-1."""
    places = [place for place, one in enumerate(measured) if one.choice.portable]
    best = places[0]
    for place in places:
        if measured[place].top1 > measured[best].top1 + TIE_POINTS:
            best = place
    return best


def measure_choices(
    quantiser: Quantiser,
    load: Callable[[Path], Classifier],
    folder: Path,
    suffix: str,
    images_NCHW: Tensor,
    targets_N: Tensor,
    float_NK: Tensor,
) -> tuple[list[Measured], int, Path]:
    """Quantise by each choice, and choose.

    Args:
        quantiser: the model.
        load: loads a written file in the runtime that it is for.
        folder: folder for the files.
        suffix: suffix of the files.
        images_NCHW: images as the file takes them, for the comparison.
        targets_N: labels.
        float_NK: logits of the float student.

    Returns:
        The choices with their measurements, the place of the best one, and its file.
    """
    measured, paths = list[Measured](), list[Path]()
    for place, choice in enumerate(quantiser.choices):
        path = folder / f"choice{place}{suffix}"
        float_layers = quantiser.write(choice, path)
        guesses_N = in_batches(load(path), images_NCHW).argmax(1)
        same, right = percentage(guesses_N == float_NK.argmax(1)), percentage(guesses_N == targets_N)
        measured.append(Measured(choice, float_layers, right, same))
        paths.append(path)
    best = best_choice(measured)
    return measured, best, paths[best]


@torch.no_grad()
def in_batches(model: Classifier, images_NCHW: Tensor, size: int = 200) -> Tensor:
    """Logits (N, K) of a model, batch by batch."""
    return torch.cat([model(images) for images in images_NCHW.split(size)])


@torch.no_grad()
def layer_costs(
    model: nn.Module, calibration_NCHW: Tensor, images_NCHW: Tensor, targets_N: Tensor
) -> list[tuple[str, float]]:
    """What each layer with weights costs if it alone is in int8: layer and lost top-1 points, the costliest first.

    The layer's weights are rounded to 8 bits, symmetric per output channel. Its input is rounded to 8 bits over the
    range on the calibration images. All other layers compute in float. It simulates int8 in PyTorch, so it is the same
    for every runtime. Ties are ordered by the mean squared change of the logits.

    Args:
        model: the float student, for normalised images.
        calibration_NCHW: normalised images that give the ranges.
        images_NCHW: normalised images to measure on.
        targets_N: their labels.
    """
    layers = layers_with_weights(model)
    ranges = _input_ranges(model, layers, calibration_NCHW)
    classify: Classifier = lambda images: logits_of(model(images), model)  # noqa: E731
    float_NK = in_batches(classify, images_NCHW)
    before, costs = percentage(float_NK.argmax(1) == targets_N), list[tuple[str, float, float]]()
    for name, layer in layers.items():
        if name not in ranges:  # a layer that this model does not use
            continue
        with _in_int8(layer, *ranges[name]):
            logits_NK = in_batches(classify, images_NCHW)
        lost = before - percentage(logits_NK.argmax(1) == targets_N)
        costs.append((name, lost, float((logits_NK - float_NK).square().mean())))
    return [(name, lost) for name, lost, _ in sorted(costs, key=lambda cost: cost[1:], reverse=True)]


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a model, by name and in order."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}


def check_quantisable(model: nn.Module, name: str) -> None:
    """Raise an error if a model has nothing that int8 can compute.

    Raises:
        ModelError: it has no convolution and no linear layer.
    """
    if not layers_with_weights(model):
        raise ModelError(
            f"{name} has no convolution and no linear layer, so there is nothing to quantise; leave --quantise out"
        )


def _input_ranges(
    model: nn.Module, layers: Mapping[str, nn.Module], images_NCHW: Tensor
) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        in_batches(lambda images: logits_of(model(images), model), images_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


@contextmanager
def _in_int8(layer: nn.Module, low: float, high: float) -> Iterator[None]:
    """Round a layer's weights and input to 8 bits inside the block."""
    part: Any = layer
    scale = max(high - low, 1e-8) / 255
    zero = round(-low / scale)
    hook = layer.register_forward_pre_hook(
        lambda _, inputs: (torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, 255), *inputs[1:])
    )
    weight = part.weight.data
    scales = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-12)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    part.weight.data = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
    try:
        yield
    finally:
        part.weight.data = weight
        hook.remove()
