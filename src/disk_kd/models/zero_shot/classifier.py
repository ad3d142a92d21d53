"""An image tower and a text matrix as a classifier.

Shapes: B batch, H height, W width, D features of the common space, K classes, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Clip:
    """A CLIP-like model, read from its library.

    Attributes:
        tower: maps normalised images (B, 3, H, W) to embeddings (B, D).
        config: configuration from which the tower is built again, as JSON values.
        embed: maps P prompts to text embeddings (P, D), without gradients.
        scale: factor of the cosine in the logits.
        bias: number added to the logits; 0 for CLIP.
        sigmoid: whether the model was trained with one sigmoid for each pair of image and text, as SigLIP was, and not
            with a softmax over the texts.
        mean, std: normalisation of images, for pixels in [0, 1].
        image_size: side in pixels of its images.
    """

    tower: nn.Module
    config: dict[str, Any]
    embed: Callable[[Sequence[str]], Tensor]
    scale: float
    bias: float
    sigmoid: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int


class ZeroShotClassifier(nn.Module):
    """Zero-shot classification: logits = scale cos(v(x), t_k) + bias.

    v is the image tower and t_k the text embedding of class k. softmax(logits) are CLIP's probabilities of the classes.
    A SigLIP model was trained with sigmoid(logits), one probability for each class, which do not sum to 1. Methods of
    distillation take the softmax; it does not depend on the bias, and ranks the classes in the same order.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section
    3.1; Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, section 3.2.

    Args:
        tower: maps normalised images (B, 3, H, W) to embeddings (B, D).
        num_classes: K.
        features: D.
    """

    text_KD: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, tower: nn.Module, num_classes: int, features: int) -> None:
        super().__init__()
        self.tower = tower
        self.num_classes, self.num_features, self.in_chans = num_classes, features, 3
        self.pretrained_cfg: dict[str, Any] = {}
        self.register_buffer("text_KD", torch.zeros(num_classes, features))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    @classmethod
    def of(cls, clip: Clip, text_KD: Tensor) -> ZeroShotClassifier:
        """The classifier of a model and the embeddings of its classes (`class_embeddings`)."""
        made = cls(clip.tower, *text_KD.shape)
        made.text_KD.copy_(text_KD)
        made.scale.fill_(clip.scale)
        made.bias.fill_(clip.bias)
        side = clip.image_size
        made.pretrained_cfg = {
            "mean": clip.mean,
            "std": clip.std,
            "input_size": (3, side, side),
            "strict_img_size": True,
        }
        return made.eval()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to embeddings (B, D)."""
        return self.tower(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map embeddings to logits (B, K), or with `pre_logits` to embeddings of length 1 (B, D)."""
        unit_BD = F.normalize(x.float(), dim=-1)
        return unit_BD if pre_logits else self.scale * (unit_BD @ self.text_KD.T) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def class_embeddings(clip: Clip, words: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The embedding of each class, (K, D), of length 1.

    The embeddings of the prompts are brought to length 1 and averaged, and the mean is brought to length 1 again.

    Args:
        clip: the model.
        words: the word of each class, in label order.
        templates: prompts, each with {} in the place of the word.

    Source: the average over prompts is that of Radford et al., section 3.1.4.
    """
    rows = []
    for word in words:
        prompts_PD = clip.embed([template.replace("{}", word) for template in templates])
        rows.append(F.normalize(F.normalize(prompts_PD.float(), dim=-1).mean(0), dim=-1))
    return torch.stack(rows)
