"""CLIP and SigLIP models of the package transformers.

Weights are read from safetensors files alone, and no code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.errors import CheckpointError, ModelError, one_line
from disk_kd.files import user_path
from disk_kd.models.foreign.files import needed, quiet
from disk_kd.models.foreign.hugging_face import silent
from disk_kd.models.zero_shot.classifier import Clip

_PARTS = ("vision_model", "text_model", "get_text_features", "logit_scale")


class TransformersTower(nn.Module):
    """Maps normalised images (B, 3, H, W) to embeddings (B, D).

    Args:
        vision: a vision model of transformers with a `pooler_output`.
        projection: linear map of this output; None: there is none.
    """

    def __init__(self, vision: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.vision, self.projection = vision, projection

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.vision(pixel_values=x).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


def transformers_tower(config: dict[str, Any]) -> TransformersTower:
    """The image tower of a configuration that `load_transformers` made, with random weights.

    Raises:
        ConfigError: transformers is not installed.
    """
    transformers = needed("transformers", "zeroshot:transformers", "transformers")
    vision = dict(config["vision"])
    with quiet():
        made = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(vision.pop("model_type"), **vision))
    inputs, outputs = config["projection"] or (0, 0)
    return TransformersTower(made, nn.Linear(inputs, outputs, bias=False) if outputs else None)


def load_transformers(path: str, pretrained: bool) -> Clip:
    """The model in a folder that `save_pretrained` wrote, or of a name on the hub; as for `load_clip`."""
    name = f"transformers:{path}"
    transformers = needed("transformers", name, "transformers")
    folder = user_path(path)
    if not folder.is_dir() and not pretrained:
        raise CheckpointError(f"there is no folder {folder}; give one, or --pretrained true for {path} on the hub")
    source = str(folder) if folder.is_dir() else path
    where: dict[str, Any] = {"local_files_only": folder.is_dir(), "trust_remote_code": False}
    try:
        with silent(transformers):
            weights = {"use_safetensors": True, "dtype": torch.float32}
            model: Any = transformers.AutoModel.from_pretrained(source, **weights, **where).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
            processor = transformers.AutoImageProcessor.from_pretrained(source, **where)
    except Exception as error:  # transformers, tokenizers and safetensors raise errors of many kinds
        raise CheckpointError(
            f"{name} cannot be read ({one_line(error)}); give a folder with config.json, model.safetensors,"
            " preprocessor_config.json and the files of the tokenizer"
        ) from error
    if lacking := [part for part in _PARTS if not hasattr(model, part)]:
        raise ModelError(f"{name} is a {type(model).__name__} without {lacking[0]}; give a CLIP or SigLIP model")
    vision = model.config.vision_config.to_diff_dict() | {"model_type": model.config.vision_config.model_type}
    projection = getattr(model, "visual_projection", None)
    config = {
        "vision": vision,
        "projection": None if projection is None else [projection.in_features, projection.out_features],
    }
    tower = transformers_tower(config).eval()
    _copy(model.vision_model, tower.vision)
    if projection is not None:
        _copy(projection, tower.projection)
    bias = getattr(model, "logit_bias", None)
    return Clip(
        tower=tower,
        config=config,
        embed=lambda prompts: _embedded(model, tokenizer, prompts),
        scale=model.logit_scale.exp().item(),
        bias=0.0 if bias is None else bias.item(),
        sigmoid=bias is not None,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        image_size=int(model.config.vision_config.image_size),
    )


@torch.no_grad()
def _embedded(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Text embeddings (P, D) of prompts."""
    length = model.config.text_config.max_position_embeddings
    # SigLIP was trained on texts of one length, and reads the last token.
    padding = "max_length" if hasattr(model, "logit_bias") else True
    tokens = tokenizer(list(prompts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
    known = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
    output = model.get_text_features(**known)
    return output if isinstance(output, Tensor) else output.pooler_output


def _copy(source: nn.Module, target: nn.Module | None) -> None:
    """Copy the state of a module, whose keys may have one more or one less name before them."""
    assert target is not None
    theirs, ours = source.state_dict(), set(target.state_dict())
    prefix = next((key.removesuffix(each) for key in ours for each in theirs if key.endswith(f".{each}")), "")
    if set(theirs) != ours:
        theirs = {f"{prefix}{key}": value for key, value in theirs.items()}
    target.load_state_dict(theirs)
