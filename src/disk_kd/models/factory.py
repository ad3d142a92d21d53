"""Models by name, with errors that help, and their cost.

Shapes: C channels of the image, H and W its height and width.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_name, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from disk_kd.errors import ModelError, nearest
from disk_kd.models.weights import StrPath, load_weights

_SOURCES = ("hf-hub:", "local-dir:")
_LOCAL_FILE = "give a local file as weights=FILE, or pretrained=False"


def create_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    weights: StrPath | None = None,
    pretrained: bool = False,
    **model_kwargs: Any,
) -> nn.Module:
    """Create a timm model, ours (``cifar_*``) or any of timm's.

    Args:
        name: a name of `timm.list_models`, with a tag (``resnet18.a1_in1k``) or without, or
            ``hf-hub:owner/model`` or ``local-dir:folder``.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        weights: a local file to load (`load_weights`).
        pretrained: let timm fetch its weights. Only this, and a ``hf-hub:`` name, use the network.
        model_kwargs: further options of the model, such as ``drop_rate``.

    Raises:
        ModelError: an unknown name or option, or pretrained weights that cannot be had.
        CheckpointError: `weights` cannot be read or do not fit.
    """
    if weights is not None and pretrained:
        raise ModelError("weights and pretrained=True exclude each other; give one of them")
    if num_classes < 0 or in_chans < 1:
        raise ModelError(
            f"expected num_classes >= 0 and in_chans >= 1, not num_classes={num_classes}, in_chans={in_chans}"
        )
    if not name.startswith(_SOURCES):
        _check_name(name)
    options = {"num_classes": num_classes, "in_chans": in_chans, **model_kwargs}
    try:
        model = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise ModelError(f"{name}: pretrained weights cannot be fetched ({_one_line(error)}); {_LOCAL_FILE}") from error
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        advice = _LOCAL_FILE if pretrained else _nearest_option(name, error)
        raise ModelError(f"{name} cannot be built with {options}: {_one_line(error)}; {advice}") from error
    if weights is not None:
        load_weights(model, weights)
    return model


def shipped_weights(name: str) -> Path | None:
    """The file of pretrained weights that is part of the package, which `timm.create_model` loads too; None: no file.

    Args:
        name: of a model.
    """
    cfg = get_pretrained_cfg(name)
    return Path(cfg.file) if cfg is not None and cfg.file else None


def multiply_adds(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-adds of one forward pass in eval mode over one image.

    Convolutions, linear layers, matrix products and attention are counted, one for each product that is
    summed: half of what `torch.utils.flop_counter` counts as operations. Biases, normalisations,
    activations, pooling and additions are not. So counted are the published costs of these networks.

    Args:
        model: any classifier; its modes are left as they were.
        input_size: (C, H, W).

    Raises:
        ModelError: the model does not take such an image.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__} does not take an image of shape {tuple(input_size)} (C, H, W): {_one_line(error)}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def check_logits(model: nn.Module, input_size: tuple[int, int, int], num_classes: int) -> None:
    """See that the model, in the mode that it is in, gives a logit for each class.

    Its buffers and the random numbers are left as they were.

    Args:
        model: any classifier.
        input_size: (C, H, W).
        num_classes: K.

    Raises:
        ModelError: the model does not take such images, or gives something else for B of them than (B, K).
    """
    parameter = next(model.parameters())
    images = torch.zeros(2, *input_size, device=parameter.device, dtype=parameter.dtype)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            logits = model(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__} does not take an image of shape {tuple(input_size)} (C, H, W): {_one_line(error)}"
        ) from error
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if shape != (2, num_classes):
        raise ModelError(
            f"{type(model).__name__} gives {shape} for two images, not logits of shape {(2, num_classes)}; leave out"
            " options that make something else of it than a classifier"
        )


def _check_name(name: str) -> None:
    architecture = get_arch_name(name)
    if not timm.is_model(architecture):
        raise ModelError(
            f"no model is named {name!r}; {nearest(architecture, timm.list_models())}; see timm.list_models()"
        )
    valid = [architecture, *timm.list_models(f"{architecture}.*", include_tags=True)]
    if name not in valid:
        raise ModelError(f"{architecture} has no weights named {name!r}; {nearest(name, valid)}")


def _nearest_option(name: str, error: Exception) -> str:
    """Name the options nearest to one that the model's class does not know."""
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown and not name.startswith(_SOURCES):
        module = sys.modules[model_entrypoint(get_arch_name(name)).__module__]
        if model_class := getattr(module, unknown[1], None):
            return nearest(unknown[2], inspect.signature(model_class).parameters)
    return "correct the options"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
