"""Maps and pooled features of timm models, computed in the same forward pass as the logits.

Outputs have names:
    "logits"                  (B, classes)
    "pooled"                  (B, F), before the classifier
    "last"                    before pooling, as `forward_features` gives it
    "stage0", "stage1", ...   maps (B, C, H, W), of the entries of `feature_info`
    "map"                     what the helpers of DiSK read: the output that the model names in its attribute
                              `map_output`, else the map of the entry before the last
    "regions1-2"              (B, R, classes), logits of regions: for each number m the m^2 cells of a grid over "last",
                              row by row, each averaged and classified as the whole map is
    "layer1.0.conv2", ...     of the module of that path
The stages of a transformer are its blocks, their tokens laid out as an image.

A plain model is typed `Any`: what is read of it is timm's protocol, which `nn.Module` does not know.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ModelError, nearest
from disk_kd.logits import blank_images, logits_of

BEFORE_LAST = -2
_STAGE = re.compile(r"stage(\d+)")
_REGIONS = re.compile(r"regions([1-9]\d*(?:-[1-9]\d*)*)")
_HEADS = {"logits", "pooled", "last"}


def forward_with_features(model: nn.Module, images_BCHW: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Outputs of a model by name, in one forward pass, with gradients.

    Of a compiled model the plain model runs, because compiled code keeps no intermediate outputs. To compile this
    forward pass too, or to train on many devices, wrap the module whose forward calls this function.

    Args:
        model: a timm model, or any module where `names` are "logits" and paths of modules.
        images_BCHW: (B, C, H, W), normalised for the model.
        names: of the outputs, as above.

    Raises:
        ModelError: the model has no such output.
    """
    plain: Any = unwrap_model(model)
    for name in names:
        check_features(plain, name)
    if "map" in names and hasattr(plain, "map_output"):
        outputs = forward_with_features(plain, images_BCHW, {*names, plain.map_output} - {"map"})
        return {name: outputs[plain.map_output if name == "map" else name] for name in names}
    stages = {name: stage_of(plain, name) for name in names if _is_stage(name)}
    paths = [name for name in names if is_path(name)]
    regions = [name for name in names if _is_regions(name)]
    with _module_outputs(plain, paths) as caught:
        if not stages and not regions and not {"pooled", "last"} & set(names):
            outputs = {"logits": logits_of(plain(images_BCHW), plain)}
        else:
            features, maps = _features_and_stages(plain, images_BCHW, sorted(set(stages.values())))
            outputs = {name: maps[stage] for name, stage in stages.items()} | {"last": features}
            if "pooled" in names:
                outputs["pooled"] = plain.forward_head(features, pre_logits=True)
            if "logits" in names:
                outputs["logits"] = logits_of(plain.forward_head(features), plain)
            outputs |= {name: _region_logits(plain, features, name) for name in regions}
    return {name: outputs[name] if name in outputs else _only(plain, name, caught[name]) for name in names}


@torch.no_grad()
def feature_shapes(
    model: nn.Module, names: Collection[str], in_chans: int | None = None, image_size: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's outputs without the batch dimension, found by a forward pass over a blank image in eval mode.

    Args:
        model: a timm model, plain or wrapped.
        names: of the outputs.
        in_chans: channels of its images; None: as the model states.
        image_size: height and width of its images; None: as the model states.

    Raises:
        ModelError: the model has no such output.
    """
    plain: Any = unwrap_model(model)
    height, width = fixed_image_size(plain) or (image_size or usual_image_size(plain),) * 2
    blank = blank_images(plain, 1, (in_chans or input_channels(plain), height, width))
    modes = {module: module.training for module in plain.modules()}
    plain.eval()
    try:
        outputs = forward_with_features(plain, blank, names)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: tuple(output.shape[1:]) for name, output in outputs.items()}


@torch.no_grad()
def feature_sizes(model: nn.Module, in_chans: int | None = None, image_size: int | None = None) -> dict[str, int]:
    """Sizes of a model's outputs, for building helper networks. They are found by a forward pass over a blank image.

    Args:
        model: a timm model, plain or wrapped, or a `Teacher`.
        in_chans: channels of its images; None: as the model states.
        image_size: height and width of its images; None: as the model states.

    Returns:
        "logits": classes, "pooled": features before the classifier, "map": channels before the last stage.

    Raises:
        ModelError: the model lacks parts of timm's interface.
    """
    plain: Any = unwrap_model(model)
    if hasattr(plain, "sizes"):
        return plain.sizes(in_chans, image_size)
    shapes = feature_shapes(plain, ("logits", "pooled", "map"), in_chans, image_size)
    return {name: shape[0] for name, shape in shapes.items()}


def stage_of(model: Any, name: str) -> int:
    """The index in `feature_info` of "map" or of a stage such as "stage3"."""
    return len(model.feature_info) + BEFORE_LAST if name == "map" else int(name.removeprefix("stage"))


def _is_stage(name: str) -> bool:
    return name == "map" or _STAGE.fullmatch(name) is not None


def _is_regions(name: str) -> bool:
    return _REGIONS.fullmatch(name) is not None


def of_classes(name: str) -> bool:
    """Whether an output has one number for each class."""
    return name == "logits" or _is_regions(name)


def is_path(name: str) -> bool:
    """Whether an output is named by the path of its module."""
    return not _is_stage(name) and not _is_regions(name) and name not in _HEADS


def check_features(model: Any, name: str) -> None:
    """Raise an error if a plain model cannot give an output; the message names what the model lacks.

    Args:
        model: a plain model.
        name: of the output.

    Raises:
        ModelError: a method, an entry of `feature_info` or a module is missing.
    """
    if name == "map" and hasattr(model, "map_output"):
        name = model.map_output
    if name == "logits":
        return
    if is_path(name):
        paths = [path for path, _ in model.named_modules() if path]
        if name not in paths:
            raise ModelError(
                f"{type(model).__name__} has no output or module {name!r}; give pooled, last, map, stage0 ... or"
                f" a module's path, {nearest(name, paths)}"
            )
        return
    wanted = ["forward_features", "forward_head"] + ["feature_info"] * _is_stage(name)
    missing = [name for name in wanted if not hasattr(model, name)]
    if missing:
        raise ModelError(
            f"{type(model).__name__} has no {' and no '.join(missing)}, from which its {name} output is read; "
            "use a timm model, or a method that reads logits only"
        )
    if name == "map" and len(model.feature_info) < 2:
        raise ModelError(f"{type(model).__name__} has one stage, so no map before the last; use another model")
    if _is_stage(name) and stage_of(model, name) >= len(model.feature_info):
        raise ModelError(f"{type(model).__name__} has stage0 to stage{len(model.feature_info) - 1}, not {name}")


def input_channels(model: Any) -> int:
    """Number of input channels of a plain model: as it states, else as its first convolution has, else 3."""
    if hasattr(model, "in_chans"):
        return model.in_chans
    return next((weight.shape[1] for weight in model.parameters() if weight.ndim == 4), 3)


def fixed_image_size(model: Any) -> tuple[int, int] | None:
    """Height and width of a plain model that accepts one image size only; None if it accepts any."""
    patches: Any = getattr(model, "patch_embed", None)
    if _pretrained_cfg(model).get("strict_img_size"):  # a foreign model, or one whose options state image_size
        height, width = _pretrained_cfg(model)["input_size"][-2:]
        return height, width
    if _pretrained_cfg(model).get("fixed_input_size") and getattr(patches, "strict_img_size", False):
        return patches.img_size
    return None


def usual_image_size(model: Any) -> int:
    """Height and width of the images that a plain model was made for; 32 if it does not say."""
    if made_for := getattr(getattr(model, "patch_embed", None), "img_size", None):
        return int(made_for[-1])  # options of the model may have changed it
    return _pretrained_cfg(model).get("input_size", (3, 32, 32))[-1]


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of a plain timm model's images; None where it does not say."""
    cfg = _pretrained_cfg(model)
    return (tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= cfg.keys() else None


def _pretrained_cfg(model: Any) -> dict[str, Any]:
    cfg = getattr(model, "pretrained_cfg", None)
    return cfg if isinstance(cfg, dict) else {}


def _region_logits(model: Any, map_BCHW: Tensor, name: str) -> Tensor:
    """The classifier's logits of the average of each cell: (B, cells, classes)."""
    scales = [int(scale) for scale in name.removeprefix("regions").split("-")]
    cells = torch.cat([F.adaptive_avg_pool2d(map_BCHW, scale).flatten(2) for scale in scales], dim=2)
    rows = cells.transpose(1, 2).flatten(0, 1)[:, :, None, None]
    return logits_of(model.forward_head(rows), model).unflatten(0, (len(map_BCHW), -1))


@torch.no_grad()
def pools_by_average(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the head gives the same logits for a map and for the map's average, in eval mode.

    Args:
        model: a timm model, plain or wrapped.
        shape: of its last map, without the batch.
    """
    plain: Any = unwrap_model(model)
    modes = {module: module.training for module in plain.modules()}
    map_BCHW = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)).to(next(plain.parameters()))
    plain.eval()
    try:
        whole = logits_of(plain.forward_head(map_BCHW), plain)
        averaged = logits_of(plain.forward_head(map_BCHW.mean((2, 3), keepdim=True)), plain)
    except (RuntimeError, ValueError, AssertionError):
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    return whole.shape == averaged.shape and torch.allclose(whole, averaged, rtol=1e-2, atol=1e-2)


def _features_and_stages(model: Any, images_BCHW: Tensor, stages: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The output of `forward_features` and the maps of some stages, in one forward pass."""
    if not stages:
        return model.forward_features(images_BCHW), {}
    if hasattr(model, "forward_intermediates"):
        features, maps = model.forward_intermediates(images_BCHW, indices=stages)
        return features, dict(zip(stages, maps, strict=True))
    paths = {stage: model.feature_info[stage]["module"] for stage in stages}
    with _module_outputs(model, paths.values()) as caught:
        features = model.forward_features(images_BCHW)
    return features, {stage: _only_map(model, stage, caught[path]) for stage, path in paths.items()}


@contextmanager
def _module_outputs(model: Any, paths: Collection[str]) -> Iterator[dict[str, list[Any]]]:
    """Collects the outputs of modules by path, inside the block."""
    caught: dict[str, list[Any]] = {path: [] for path in paths}
    handles = []
    try:
        for path, outputs in caught.items():
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise ModelError(
                    f"{type(model).__name__} has no module {path}, which its feature_info names; use another model"
                ) from None
            handles.append(module.register_forward_hook(lambda module, args, out, outputs=outputs: outputs.append(out)))
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _only(model: Any, path: str, caught: list[Any]) -> Tensor:
    """The single tensor that a module gave."""
    if len(caught) == 1 and isinstance(caught[0], Tensor):
        return caught[0]
    raise ModelError(
        f"module {path} of {type(model).__name__} gave {len(caught)} outputs, not one tensor; name another module"
    )


def _only_map(model: Any, stage: int, caught: list[Any]) -> Tensor:
    """The single output in `caught`, if it is a map (B, C, H, W) with the number of channels that the model states."""
    about = model.feature_info[stage]
    if len(caught) == 1 and isinstance(caught[0], Tensor) and caught[0].ndim == 4:
        (map_BCHW,) = caught
        if map_BCHW.shape[1] == about["num_chs"]:
            return map_BCHW
    raise ModelError(
        f"{about['module']} of {type(model).__name__} gives no map (B, {about['num_chs']}, H, W) here; use "
        "another model"
    )
