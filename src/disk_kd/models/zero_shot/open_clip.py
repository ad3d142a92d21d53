"""Models of the package open_clip.

A local folder holds `open_clip_config.json` and a file of weights, which is read without running code in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.errors import CheckpointError, ModelError, one_line
from disk_kd.files import user_path
from disk_kd.models.foreign.files import needed, quiet
from disk_kd.models.zero_shot.classifier import Clip

_CONFIG = "open_clip_config.json"
_OF_TOWER = ("embed_dim", "vision_cfg", "quick_gelu")


class OpenClipTower(nn.Module):
    """Maps normalised images (B, 3, H, W) to embeddings (B, D).

    Args:
        visual: the image tower of open_clip. If it gives a tuple, the embeddings come first.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        output = self.visual(x)
        return output[0] if isinstance(output, tuple) else output


def open_clip_tower(config: dict[str, Any]) -> OpenClipTower:
    """The image tower of a configuration that `load_open_clip` made, with random weights.

    Raises:
        ConfigError: open_clip is not installed.
    """
    needed("open_clip", "zeroshot:open_clip", "open_clip")
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    vision = {key: value for key, value in config["vision_cfg"].items() if key != "timm_model_pretrained"}
    with quiet():
        return OpenClipTower(_build_vision_tower(config["embed_dim"], CLIPVisionCfg(**vision), config["quick_gelu"]))


def load_open_clip(path: str, pretrained: bool) -> Clip:
    """The model in a folder, or of a name: hf-hub:OWNER/NAME or MODEL/TAG; as for `load_clip`."""
    name = f"open_clip:{path}"
    library = needed("open_clip", name, "open_clip")
    folder = user_path(path)
    if folder.is_dir():
        config, source, tag = _read_config(name, folder / _CONFIG), f"local-dir:{folder}", None
        text = config.get("text_cfg", {})
        outside = text.get("hf_model_name")
        if outside and not pretrained:
            raise CheckpointError(
                f"the text tower of {name} is {outside}, which open_clip looks up on the hub; give --pretrained true"
            )
    elif not pretrained:
        raise CheckpointError(f"there is no folder {folder}; give one, or --pretrained true for {path} on the hub")
    elif path.startswith("hf-hub:"):
        config, source, tag = None, path, None
    else:
        source, _, tag = path.partition("/")
        config = library.get_model_config(source)
        if config is None or not tag:
            raise ModelError(f"open_clip has no model {source!r} with weights {tag!r}; give open_clip:MODEL/TAG")
    try:
        with quiet():
            model: Any = library.create_model(source, pretrained=tag, require_pretrained=True).eval()
            tokenizer = library.get_tokenizer(source)
            config = config or _hub_config(library, path)
    except Exception as error:  # open_clip and the libraries under it raise errors of many kinds
        raise CheckpointError(
            f"{name} cannot be read ({one_line(error)}); give a folder with {_CONFIG} and the file of weights"
        ) from error
    config = {"quick_gelu": False, **{key: config[key] for key in _OF_TOWER if key in config}}
    tower = open_clip_tower(config).eval()
    tower.visual.load_state_dict(model.visual.state_dict())
    settings = model.visual.preprocess_cfg
    size = settings["size"]
    bias = getattr(model, "logit_bias", None)
    return Clip(
        tower=tower,
        config=config,
        embed=lambda prompts: _embedded(model, tokenizer, prompts),
        scale=model.logit_scale.exp().item(),
        bias=0.0 if bias is None else bias.item(),
        sigmoid=bias is not None,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        image_size=int(size if isinstance(size, int) else size[0]),
    )


@torch.no_grad()
def _embedded(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    return model.encode_text(tokenizer(list(prompts)))


def _hub_config(library: Any, path: str) -> dict[str, Any]:
    """The model's configuration of a name on the hub, which create_model has downloaded."""
    return library.factory._get_hf_config(path.removeprefix("hf-hub:"))["model_cfg"]


def _read_config(name: str, file: Any) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        config["embed_dim"], config["vision_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}: {file} cannot be read ({one_line(error)}); give a folder that has it") from None
    return config
