"""Image classifiers of the package transformers, with what their processor says about images.

Weights are read from safetensors files alone, and no code of a repository is run. A local folder never reaches the
network.

Shape letters: B batch, C channels, H height, W width, K classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.errors import CheckpointError, ModelError, nearest, one_line
from disk_kd.files import user_path
from disk_kd.logits import logits_of
from disk_kd.models.foreign.files import needed, offline, quiet

_RESERVED = frozenset({"num_labels", "id2label", "label2id", "num_channels"})


class TransformersModel(nn.Module):
    """Maps images (B, C, H, W), normalised as its processor does, to logits (B, K); without classes to features (B, F).

    Args:
        model: an image classifier of transformers, or a backbone if `num_classes` is 0.
        num_classes: K.
        settings: `pretrained_cfg`.
    """

    def __init__(self, model: nn.Module, num_classes: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.in_chans: int = settings["input_size"][0]
        self.pretrained_cfg = settings

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, K). A backbone gives its pooled output, or the first token where it has none."""
        output = self.model(images_BCHW)
        return logits_of(output, self) if self.num_classes else _pooled(output)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, as in timm's models."""
        model: Any = self.model
        model.gradient_checkpointing_enable() if enable else model.gradient_checkpointing_disable()


def transformers_model(
    path: str, *, num_classes: int | None, in_chans: int, pretrained: bool, **options: Any
) -> TransformersModel:
    """The classifier in a folder that `save_pretrained` wrote, or of a name on the hub.

    Args:
        path: the folder or name.
        num_classes: number of classes. If it is not that of the weights, the classifier gets new, random weights. 0:
            no classifier. None: that of the weights.
        in_chans: channels of the images.
        pretrained: load the weights, and allow the download of a name on the hub.
        options: attributes of the model's configuration, such as ``hidden_dropout_prob``.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: there is no such folder or name, or it is incomplete or damaged.
        ModelError: an unknown option, or the model is no image classifier.
    """
    name = f"transformers:{path}"
    transformers = needed("transformers", name, "transformers")
    folder = user_path(path)
    source = str(folder) if folder.is_dir() else path
    where: dict[str, Any] = {"local_files_only": folder.is_dir() or not pretrained, "trust_remote_code": False}
    with silent(transformers), offline(where["local_files_only"]):
        config = _read(name, lambda: transformers.AutoConfig.from_pretrained(source, **where))
        names, settings = _class_names(config), _settings(transformers, source, where, config, in_chans)
        num_classes = len(names) if num_classes is None else num_classes
        settings |= {"num_classes": len(names), "label_names": names if _are_named(names) else None}
        _configure(name, config, num_classes, in_chans, options)
        kind = transformers.AutoModelForImageClassification if num_classes else transformers.AutoModel
        if pretrained:
            weights = {"use_safetensors": True, "ignore_mismatched_sizes": True, "dtype": torch.float32}
            made = _read(name, lambda: kind.from_pretrained(source, config=config, **where, **weights))
        else:
            made = _read(name, lambda: kind.from_config(config, trust_remote_code=False))
    return TransformersModel(made, num_classes, settings)


def _configure(name: str, config: Any, num_classes: int, in_chans: int, options: dict[str, Any]) -> None:
    """Set the options, the classes and the channels in a configuration."""
    for key, value in options.items():
        if key in _RESERVED or not hasattr(config, key):
            known = [each for each in config.to_dict() if each not in _RESERVED]
            raise ModelError(f"the configuration of {name} has no option {key!r}; {nearest(key, known)}")
        setattr(config, key, value)
    if num_classes and num_classes != config.num_labels:
        config.num_labels = num_classes
    if hasattr(config, "num_channels"):
        config.num_channels = in_chans


def _settings(transformers: Any, source: str, where: dict[str, Any], config: Any, in_chans: int) -> dict[str, Any]:
    """What processor and configuration say about images, as in timm's `pretrained_cfg`.

    A processor computes ((255 f x - o) - mean) / std of pixels x in [0, 1], with its factor f and offset o.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, **where)
    except Exception:  # without a processor, which raises errors of many kinds, mean and std come from the options
        processor = None
    side = _side(processor) or _number(getattr(config, "image_size", None))
    settings: dict[str, Any] = {"input_size": (in_chans, side or 224, side or 224)}
    if side is not None:
        settings["strict_img_size"] = True
    if processor is None or (not getattr(processor, "do_normalize", False) and not _rescales(processor)):
        return settings
    factor = 255 * processor.rescale_factor if _rescales(processor) else 255.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    normalises = processor.do_normalize and processor.image_mean is not None
    mean, std = (processor.image_mean, processor.image_std) if normalises else ((0.0,) * in_chans, (1.0,) * in_chans)
    return settings | {
        "mean": tuple((value + offset) / factor for value in mean),
        "std": tuple(value / factor for value in std),
    }


def _rescales(processor: Any) -> bool:
    return bool(getattr(processor, "do_rescale", False))


def _side(processor: Any) -> int | None:
    """The side of a processor's square images; None if they are not square or it does not say."""
    crops = getattr(processor, "do_center_crop", False)
    size = getattr(processor, "crop_size" if crops else "size", None)
    height, width = (getattr(size, key, None) for key in ("height", "width"))
    if height is not None:
        return _number(height) if height == width else None
    return _number(getattr(size, "shortest_edge", None))


def _number(size: Any) -> int | None:
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _class_names(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[label]) for label in sorted(config.id2label))


def _are_named(names: tuple[str, ...]) -> bool:
    """Whether someone named the classes: transformers calls them LABEL_0, LABEL_1 ... otherwise."""
    return names != tuple(f"LABEL_{label}" for label in range(len(names)))


def _pooled(output: Any) -> Tensor:
    """The pooled features (B, F) of a backbone's output. Convolutional ones have them as (B, F, 1, 1)."""
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _read(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # transformers, safetensors and the models' own checks raise errors of many kinds
        raise CheckpointError(
            f"{name} cannot be read as an image classifier ({one_line(error)}); give a folder that save_pretrained"
            " wrote, with config.json and model.safetensors. A name on the hub is downloaded only with pretrained true"
        ) from error


@contextmanager
def silent(transformers: Any) -> Iterator[None]:
    """Hide the progress bars and notes of transformers inside the block."""
    log = transformers.utils.logging
    bars = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if bars:
            log.enable_progress_bar()
