"""Batch norms folded into the convolutions before them, for a model that stays in eval mode.

In eval mode a batch norm is y = (x - mean) / sqrt(var + eps) * weight + bias with constants per channel. The
convolution before it can hold these in its own weight and bias. Each fold saves one sweep over the activations.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from disk_kd.errors import ModelError
from disk_kd.teacher.features import forward_with_features

TOLERANCE = 1e-4
"""Maximum change of an output by folding, relative to the largest absolute value of the output."""

# Types, not subclasses: another subclass may do something else to its weight or its input.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)

Pair = tuple[str, str]
"""Names of a convolution and of the batch norm that reads it."""


@torch.no_grad()
def fold_batch_norms(model: nn.Module, example_images: Tensor, names: Collection[str] = ()) -> int:
    """Fold, in place, every batch norm whose only input is the output of a convolution, and check the result.

    The pairs are found by running the model. A pair is skipped if its folding would change logits, features or maps by
    more than `TOLERANCE`, for example if another module also reads the convolution's output. The check uses a float32
    copy on the CPU, so that the model's precision and device do not affect it.

    The norm is replaced by the identity, or by the dropout and activation of timm's `BatchNormAct2d`. Module names,
    memory formats, types and devices stay; the names in the state change.

    Args:
        model: a model in eval mode that stays in eval mode; plain or wrapped.
        example_images: (B, C, H, W), a few images as the model takes them, with more than one colour.
        names: further modules whose outputs must not change.

    Returns:
        The number of folded norms.

    Raises:
        ModelError: the model is in train mode, or a module in `names` gives no output.
    """
    plain = unwrap_model(model)
    if plain.training:
        raise ModelError(f"{type(plain).__name__} is in train mode, where batch norms cannot be folded; call eval()")
    if not any(type(module) in _NORMS for module in plain.modules()):
        return 0
    images_BCHW = example_images.to("cpu", torch.float32)
    trial = copy.deepcopy(plain).to("cpu", torch.float32)
    pairs = _harmless(trial, images_BCHW, _pairs(trial, images_BCHW), names)
    for pair in pairs:
        _fold(plain, pair)
    return len(pairs)


def _pairs(model: nn.Module, images_BCHW: Tensor) -> list[Pair]:
    """Each batch norm whose input is exactly the output of a convolution, where both run once."""
    calls: Counter[str] = Counter()
    made: dict[int, tuple[str, Tensor, int]] = {}  # holds the tensors, so that no id comes twice
    pairs: list[Pair] = []

    def after_convolution(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name] += 1
        made[id(output)] = (name, output, output._version)

    def before_norm(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[name] += 1
        source = made.get(id(args[0])) if args else None
        if source is not None and source[1]._version == source[2]:
            pairs.append((source[0], name))

    handles = []
    for name, module in model.named_modules():
        if _is_convolution(module):
            handles.append(module.register_forward_hook(partial(after_convolution, name)))
        elif _is_norm(module):
            handles.append(module.register_forward_pre_hook(partial(before_norm, name)))
    try:
        model(images_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name in pair)]


def _is_convolution(module: nn.Module) -> bool:
    # A weight that is not a parameter is computed again for each call: weight norm, spectral norm.
    return type(module) in _CONVOLUTIONS and isinstance(module.weight, nn.Parameter)


def _is_norm(module: nn.Module) -> bool:
    return type(module) in _NORMS and not module.training and module.running_var is not None


def _harmless(model: nn.Module, images_BCHW: Tensor, pairs: Sequence[Pair], names: Collection[str]) -> list[Pair]:
    """All pairs if folding all keeps the model's outputs; else the pairs that keep them one by one."""
    expected = _outputs(model, images_BCHW, names)

    def stay(chosen: Sequence[Pair]) -> bool:
        folded = copy.deepcopy(model)
        for pair in chosen:
            _fold(folded, pair)
        try:
            return _close(_outputs(folded, images_BCHW, names), expected)
        except (AttributeError, ModelError):  # the model, or a name, reads something of the norm itself
            return False

    if stay(pairs):
        return list(pairs)
    kept: list[Pair] = []
    for pair in pairs:
        if stay([*kept, pair]):
            kept.append(pair)
    return kept


def _close(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(outputs) == len(expected) and all(
        bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max())
        for ours, theirs in zip(outputs, expected, strict=True)
    )


def _outputs(model: nn.Module, images_BCHW: Tensor, names: Collection[str]) -> list[Tensor]:
    """All outputs that a teacher may give: the model's output, its features and maps if it has them, and `names`."""
    outputs = list(forward_with_features(model, images_BCHW, ("logits", *names)).values())
    stages = [f"stage{stage}" for stage in range(len(getattr(model, "feature_info", ())))]
    for features in (["last", "map"], stages):
        with suppress(ModelError):
            outputs += forward_with_features(model, images_BCHW, features).values()
    parts = [part for output in outputs for part in (output if isinstance(output, tuple | list) else (output,))]
    return [part for part in parts if isinstance(part, Tensor)]


def _fold(model: nn.Module, pair: Pair) -> None:
    """Fold the norm into the convolution, and replace the norm by its remaining parts."""
    conv, norm = (_anything(model.get_submodule(name)) for name in pair)
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    constants = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    wide: list[Any] = [constant.to(dtype) if isinstance(constant, Tensor) else constant for constant in constants]
    weight, bias = fuse_conv_bn_weights(*wide)
    trained = conv.weight.requires_grad
    # copy_ keeps the memory format, which arithmetic need not.
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), trained)
    conv.weight = nn.Parameter(torch.empty_like(conv.weight).copy_(weight), trained)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    model.set_submodule(pair[1], rest.train(norm.training))


def _anything(module: nn.Module) -> Any:
    """The module as `Any`, for the type checker."""
    return module
