"""Maps and pooled features of timm models, in the same pass that makes the logits.

"The map" is the output of the stage before the last, `feature_info[-2]`: what the helpers of DiSK read.
Of a transformer it is the output of the block before the last, laid out as an image.

A plain model is typed `Any`: what is read of it is timm's protocol, which `nn.Module` does not know.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from disk_kd.errors import ModelError

BEFORE_LAST = -2


def forward_with_map(model: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the map before the last stage, in one pass, with gradients.

    Of a compiled model the plain one runs, since compiled code keeps no intermediate output. To compile this
    pass too, compile the module whose forward calls this function.

    Args:
        model: a timm model, plain, compiled, or in `DistributedDataParallel`.
        images_BCHW: (B, C, H, W), normalised for the model.

    Returns:
        Logits (B, classes) and the map (B, C', H', W').

    Raises:
        ModelError: the model lacks what timm's models have, or its map cannot be reached.
    """
    plain: Any = unwrap_model(model)
    if isinstance(model, DistributedDataParallel):
        # Only its own forward prepares the reduction of gradients, so the map is caught on the way.
        check_features(plain, "map")
        with _stage_output(plain) as caught:
            logits_BC = model(images_BCHW)
        return logits_BC, _caught_map(plain, caught)
    features, map_BCHW = features_and_map(plain, images_BCHW)
    return plain.forward_head(features), map_BCHW


def features_and_map(model: Any, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """What `forward_features` of a plain model gives, and its map before the last stage, in one pass.

    Raises:
        ModelError: as `forward_with_map`.
    """
    check_features(model, "map")
    if hasattr(model, "forward_intermediates"):
        features, (map_BCHW,) = model.forward_intermediates(images_BCHW, indices=[BEFORE_LAST])
        return features, map_BCHW
    with _stage_output(model) as caught:
        features = model.forward_features(images_BCHW)
    return features, _caught_map(model, caught)


@torch.no_grad()
def feature_sizes(model: nn.Module, in_chans: int | None = None, image_size: int | None = None) -> dict[str, int]:
    """Sizes of a model's outputs, as helper networks are built for them; found by a pass over a blank image.

    Args:
        model: a timm model, plain or wrapped, or a `Teacher`.
        in_chans: channels of its images; None: as the model says.
        image_size: height and width of its images; None: as the model says.

    Returns:
        "logits": classes, "pooled": features before the classifier, "map": channels before the last stage.

    Raises:
        ModelError: the model lacks what timm's models have.
    """
    plain: Any = unwrap_model(model)
    if hasattr(plain, "sizes"):
        return plain.sizes(in_chans, image_size)
    height, width = fixed_image_size(plain) or (image_size or usual_image_size(plain),) * 2
    blank = next(plain.parameters()).new_zeros(1, in_chans or input_channels(plain), height, width)
    modes = {module: module.training for module in plain.modules()}
    plain.eval()
    try:
        features, map_BCHW = features_and_map(plain, blank)
        pooled_BF, logits_BC = plain.forward_head(features, pre_logits=True), plain.forward_head(features)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {"logits": logits_BC.shape[1], "pooled": pooled_BF.shape[1], "map": map_BCHW.shape[1]}


def check_features(model: Any, need: str) -> None:
    """Refuse a plain model that cannot give its pooled features or its map, and name what it lacks.

    Args:
        model: a plain model.
        need: "pooled" or "map".

    Raises:
        ModelError: a method or `feature_info` is missing.
    """
    wanted = ["forward_features", "forward_head"] + ["feature_info"] * (need == "map")
    missing = [name for name in wanted if not hasattr(model, name)]
    if missing:
        raise ModelError(
            f"{type(model).__name__} has no {' and no '.join(missing)}, from which its {need} output is read; "
            "use a timm model, or a method that reads logits only"
        )
    if need == "map" and len(model.feature_info) < 2:
        raise ModelError(f"{type(model).__name__} has one stage, so no map before the last; use another model")


def input_channels(model: Any) -> int:
    """Channels of the images of a plain model: as it says, or as its first convolution does; else 3."""
    if hasattr(model, "in_chans"):
        return model.in_chans
    return next((weight.shape[1] for weight in model.parameters() if weight.ndim == 4), 3)


def fixed_image_size(model: Any) -> tuple[int, int] | None:
    """Height and width of the only images that a plain model takes; None where any size will do."""
    patches: Any = getattr(model, "patch_embed", None)
    if _pretrained_cfg(model).get("fixed_input_size") and getattr(patches, "strict_img_size", False):
        return patches.img_size
    return None


def usual_image_size(model: Any) -> int:
    """Height and width of the images that a plain model was made for; 32 where it does not say."""
    return _pretrained_cfg(model).get("input_size", (3, 32, 32))[-1]


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of a plain timm model's images; None where it does not say."""
    cfg = _pretrained_cfg(model)
    return (tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= cfg.keys() else None


def _pretrained_cfg(model: Any) -> dict[str, Any]:
    return getattr(model, "pretrained_cfg", None) or {}


@contextmanager
def _stage_output(model: Any) -> Iterator[list[Any]]:
    """Collects what the stage before the last gives inside the block."""
    caught: list[Any] = []
    try:
        stage = model.get_submodule(model.feature_info[BEFORE_LAST]["module"])
    except AttributeError:
        raise _no_map(model) from None
    handle = stage.register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        yield caught
    finally:
        handle.remove()


def _caught_map(model: Any, caught: list[Any]) -> Tensor:
    """The one output in `caught`, if it is a map (B, C, H, W) of the channels that the model announces."""
    if len(caught) == 1 and isinstance(caught[0], Tensor) and caught[0].ndim == 4:
        (map_BCHW,) = caught
        if map_BCHW.shape[1] == model.feature_info[BEFORE_LAST]["num_chs"]:
            return map_BCHW
    raise _no_map(model)


def _no_map(model: Any) -> ModelError:
    stage = model.feature_info[BEFORE_LAST]
    return ModelError(
        f"{stage['module']} of {type(model).__name__} gives no map (B, {stage['num_chs']}, H, W) here; use "
        "another model, or wrap the module that calls forward_with_map for training on many devices"
    )
