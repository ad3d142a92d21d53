"""Models by name, and their cost.

Shapes: C channels of the image, H and W its height and width.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_name, get_pretrained_cfg, model_entrypoint
from timm.utils import unwrap_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from disk_kd.errors import ModelError, nearest, one_line
from disk_kd.logits import blank_images, logits_of
from disk_kd.models.foreign import check_file, create_foreign, spelling
from disk_kd.models.weights import StrPath, load_weights
from disk_kd.plugins import PROBED, TIMM_SOURCES, ZERO_SHOT, find_user_code, is_foreign, is_user_code

_SIZES = {"num_classes", "in_chans"}
_LOCAL_FILE = "give a local file as weights=FILE, or pretrained=False"


def create_model(
    name: str,
    *,
    num_classes: int | None,
    in_chans: int = 3,
    weights: StrPath | None = None,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    **model_kwargs: Any,
) -> nn.Module:
    """Create a model of this package (``cifar_*``), of timm, of a user, of another library or of an exported file.

    Args:
        name: a name from `timm.list_models`, with a tag (``resnet18.a1_in1k``) or without; ``hf-hub:owner/model``;
            ``local-dir:folder``; or ``my_module:make``, a function or class that is called with `model_kwargs`, and
            with `num_classes`, `in_chans` and `pretrained` if its signature has them; or KIND:PATH of
            `disk_kd.models.foreign`, such as ``onnx:FILE``.
        num_classes: number of outputs of the classifier; 0: no classifier; None: the model's own number.
        in_chans: number of channels of the image.
        weights: local file to load (`load_weights`).
        pretrained: let timm, or transformers, download their weights. Only this and ``hf-hub:`` names use the network.
        mean, std: one value for each channel: the model takes (x - mean) / std of pixels x in [0, 1]. Its
            `pretrained_cfg` then records them. None: the model's own values.
        image_size: side in pixels of the only images that the model takes. Its `pretrained_cfg` then records it. It is
            for models that are not timm's; a function of yours gets it too if its signature has it. None: the model's
            own value, or any size.
        model_kwargs: further keyword arguments of the model, such as ``drop_rate``.

    Raises:
        ModelError: an unknown name or option, pretrained weights that cannot be loaded, a mean or std for another
            number of channels, or `my_module:make` fails or returns no `torch.nn.Module`.
        ConfigError: there is no `my_module:make`, or a package is missing.
        CheckpointError: `weights` or an exported file cannot be read, or do not fit.
    """
    if weights is not None and pretrained:
        raise ModelError("weights and pretrained=True exclude each other; give one of them")
    if (num_classes or 0) < 0 or in_chans < 1:
        raise ModelError(
            f"expected num_classes >= 0 and in_chans >= 1, not num_classes={num_classes}, in_chans={in_chans}"
        )
    sizes = {"in_chans": in_chans} if num_classes is None else {"num_classes": num_classes, "in_chans": in_chans}
    options = {**sizes, **model_kwargs}
    if image_size is not None:
        _check_image_size(image_size)
    if is_foreign(name):
        model = create_foreign(name, pretrained=pretrained, **options)
    elif name.startswith((PROBED, ZERO_SHOT)):
        model = _create_written(name, options)
    elif is_user_code(name):
        model = _make(name, options, pretrained, image_size)
    else:
        model = _create(name, options | ({} if image_size is None else {"image_size": image_size}), pretrained)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gives a {type(model).__name__}, not a torch.nn.Module; correct it")
    if weights is not None:
        if next(model.parameters(), None) is None:
            raise ModelError(f"{name} has no parameters to load {weights} into; leave out the weights")
        load_weights(model, weights)
    if image_size is not None:
        set_image_size(model, in_chans, image_size)
    if (mean, std) != (None, None):
        _check_normalisation(mean, std, in_chans)
        set_normalisation(model, mean, std)  # type: ignore[arg-type]
    return model


def _create(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    """A timm model."""
    if not name.startswith(TIMM_SOURCES):
        _check_name(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise ModelError(f"{name}: pretrained weights cannot be fetched ({one_line(error)}); {_LOCAL_FILE}") from error
    except Exception as error:  # a model that a user registered can fail in any way at all
        advice = _LOCAL_FILE if pretrained else _nearest_option(name, error)
        raise ModelError(f"{name} cannot be built with {options}: {one_line(error)}; {advice}") from error


def _create_written(name: str, options: dict[str, Any]) -> nn.Module:
    """A model that `disk-kd probe` or `disk-kd zeroshot` wrote, without its weights."""
    from disk_kd.models.backbone import create_probed  # here, because it calls `create_model`
    from disk_kd.models.zero_shot import create_zero_shot

    return create_probed(name, **options) if name.startswith(PROBED) else create_zero_shot(name, **options)


def _make(name: str, options: dict[str, Any], pretrained: bool, image_size: int | None) -> Any:
    """The model of a user's function or class."""
    make = find_user_code(name, "model")
    if not callable(make) or isinstance(make, nn.Module):
        raise ModelError(f"{name} is a {type(make).__name__}; give a function or class that makes the model")
    try:
        parameters = inspect.signature(make).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        given = {key: value for key, value in options.items() if anything or key in parameters or key not in _SIZES}
        if "pretrained" in parameters or (pretrained and anything):
            given["pretrained"] = pretrained
        elif pretrained:
            raise TypeError("it takes no 'pretrained'; give weights")
        if image_size is not None and "image_size" in parameters:
            given["image_size"] = image_size
        return make(**given)
    except Exception as error:  # a user's function can fail in any way at all
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"{name} cannot be called with {options} ({reason}); correct it, or the options") from error


def set_normalisation(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Record in a model's `pretrained_cfg` that it takes (x - mean) / std of pixels x in [0, 1]."""
    plain: Any = unwrap_model(model)
    own = getattr(plain, "pretrained_cfg", None)
    plain.pretrained_cfg = {**(own if isinstance(own, dict) else {}), "mean": tuple(mean), "std": tuple(std)}


def set_image_size(model: nn.Module, in_chans: int, image_size: int) -> None:
    """Record in a model's `pretrained_cfg` that it takes square images of this side in pixels only."""
    plain: Any = unwrap_model(model)
    own = getattr(plain, "pretrained_cfg", None)
    size = {"input_size": (in_chans, image_size, image_size), "strict_img_size": True}
    plain.pretrained_cfg = {**(own if isinstance(own, dict) else {}), **size}


def _check_image_size(image_size: Any) -> None:
    if type(image_size) is not int or image_size < 1:
        raise ModelError(f"the option image_size must be the side of the images in pixels, not {image_size!r}")


def _check_normalisation(mean: Any, std: Any, in_chans: int) -> None:
    for values in (mean, std):
        numbers = isinstance(values, Sequence) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) not in ((1, 3) if in_chans == 1 else (in_chans,)):
            raise ModelError(
                f"mean and std must be two lists of {in_chans} numbers, one a channel, not mean={mean} and std={std}"
            )
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ModelError(f"mean must be finite and std above 0, not mean={mean} and std={std}")


def shipped_weights(name: str) -> Path | None:
    """The file of pretrained weights in this package, which `timm.create_model` loads too; None if there is none.

    Args:
        name: name of a model.
    """
    cfg = get_pretrained_cfg(name)
    return Path(cfg.file) if cfg is not None and cfg.file else None


def multiply_adds(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-adds of one forward pass in eval mode over one image.

    Convolutions, linear layers, matrix products and attention are counted, one for each product that is
    summed: half of what `torch.utils.flop_counter` counts as operations. Biases, normalisations,
    activations, pooling and additions are not. So counted are the published costs of these networks. What a model
    computes outside torch is not counted: the count of an ONNX model is 0, which stands for unknown.

    Args:
        model: any classifier. Its train or eval mode is restored.
        input_size: (C, H, W).

    Raises:
        ModelError: the model does not accept such an image.
    """
    image = blank_images(model, 1, input_size)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    except Exception as error:  # a user's own model can fail in any way at all
        raise ModelError(
            f"{type(model).__name__} does not take an image of shape {tuple(input_size)} (C, H, W): {one_line(error)}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def check_logits(model: nn.Module, input_size: tuple[int, int, int], num_classes: int) -> None:
    """Check that the model, in its current mode, gives one logit for each class.

    Its buffers and the random states are restored.

    Args:
        model: any classifier.
        input_size: (C, H, W).
        num_classes: K.

    Raises:
        ModelError: the model does not accept such images, or its output for B of them is not (B, K).
    """
    images = blank_images(model, 2, input_size)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            logits = logits_of(model(images), model)
    except ModelError:
        raise
    except Exception as error:  # a user's own model can fail in any way at all
        raise ModelError(
            f"{type(model).__name__} does not take an image of shape {tuple(input_size)} (C, H, W): {one_line(error)}"
        ) from error
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    if logits.shape != (2, num_classes):
        raise ModelError(
            f"{type(model).__name__} gives {tuple(logits.shape)} for two images, not logits of shape"
            f" {(2, num_classes)}; leave out options that make something else of it than a classifier"
        )


def check_model_name(name: str) -> None:
    """Check that there is a model with this name, without building it or importing a user's module.

    Raises:
        ModelError, CheckpointError: there is none, or its file is missing.
    """
    check_file(name)
    if not (is_foreign(name) or is_user_code(name) or name.startswith((PROBED, ZERO_SHOT, *TIMM_SOURCES))):
        _check_name(name)


def _check_name(name: str) -> None:
    if found := spelling(name):
        raise ModelError(f"no model is named {name!r}; for an exported file give its kind too: {found}")
    architecture = get_arch_name(name)
    if not timm.is_model(architecture):
        raise ModelError(
            f"no model is named {name!r}; {nearest(architecture, timm.list_models())}; see timm.list_models(), or give"
            " one of your own: my_module:make, or --import the module that registers it with timm"
        )
    valid = [architecture, *timm.list_models(f"{architecture}.*", include_tags=True)]
    if name not in valid:
        raise ModelError(f"{architecture} has no weights named {name!r}; {nearest(name, valid)}")


def _nearest_option(name: str, error: Exception) -> str:
    """The options closest to one that the model's class does not have."""
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown and not name.startswith(TIMM_SOURCES):
        module = sys.modules[model_entrypoint(get_arch_name(name)).__module__]
        if model_class := getattr(module, unknown[1], None):
            return nearest(unknown[2], inspect.signature(model_class).parameters)
    return "correct the options"
