"""Zero-shot classifiers: the image tower of a CLIP-like model and a matrix of text embeddings.

| name                                | library and form                                                       |
|-------------------------------------|------------------------------------------------------------------------|
| transformers:FOLDER_OR_NAME         | CLIPModel or SiglipModel of transformers, with its tokenizer           |
| open_clip:FOLDER_OR_NAME            | a folder with open_clip_config.json; hf-hub:OWNER/NAME; or MODEL/TAG   |

`load_clip` reads such a model. `disk-kd zeroshot` writes the tower and the matrix as a model that is named
zeroshot:transformers or zeroshot:open_clip. Its options hold the tower's configuration. Neither the text tower nor the
network is needed to load it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disk_kd.errors import DiskKDError, ModelError, nearest, one_line
from disk_kd.models.foreign.files import offline
from disk_kd.models.zero_shot.classifier import Clip, ZeroShotClassifier
from disk_kd.models.zero_shot.hugging_face import load_transformers, transformers_tower
from disk_kd.models.zero_shot.open_clip import load_open_clip, open_clip_tower
from disk_kd.plugins import ZERO_SHOT

__all__ = ["Clip", "ZeroShotClassifier", "create_zero_shot", "library_of", "load_clip"]

_LOADERS: dict[str, Callable[[str, bool], Clip]] = {"transformers": load_transformers, "open_clip": load_open_clip}
_TOWERS: dict[str, Callable[[dict[str, Any]], Any]] = {"transformers": transformers_tower, "open_clip": open_clip_tower}


def library_of(name: str) -> str:
    """The library in LIBRARY:PATH.

    Raises:
        ModelError: it is another, or there is no path.
    """
    library, _, path = name.partition(":")
    if library not in _LOADERS or not path:
        known = [f"{each}:FOLDER_OR_NAME" for each in _LOADERS]
        raise ModelError(f"{name!r} is no model with an image and a text tower; {nearest(name, known)}")
    return library


def load_clip(name: str, pretrained: bool = False) -> Clip:
    """The towers of a CLIP-like model, with their weights, on the CPU.

    Args:
        name: LIBRARY:PATH.
        pretrained: allow a download from the hub. A local folder is never looked up there.

    Raises:
        ConfigError: the library is not installed.
        CheckpointError: there is no such folder or name, or it is incomplete or damaged.
        ModelError: the model has no image tower and text tower.
    """
    return _LOADERS[library_of(name)](name.partition(":")[2], pretrained)


def create_zero_shot(
    name: str, *, num_classes: int, in_chans: int, features: int, config: dict[str, Any]
) -> ZeroShotClassifier:
    """Create zeroshot:LIBRARY, as `disk-kd zeroshot` wrote it, without its weights.

    Args:
        name: zeroshot:LIBRARY.
        num_classes: K.
        in_chans: channels of the images; 3.
        features: D.
        config: configuration of the image tower.

    Raises:
        ConfigError: the library is not installed.
        ModelError: the library is unknown, the images have not 3 channels, or the configuration is not the library's.
    """
    library = name.removeprefix(ZERO_SHOT)
    if library not in _TOWERS:
        raise ModelError(f"there is no model {name}; {nearest(name, (f'{ZERO_SHOT}{each}' for each in _TOWERS))}")
    if in_chans != 3:
        raise ModelError(f"{name} takes colour images of 3 channels, these have {in_chans}")
    try:
        with offline():  # a configuration may name a tower of the hub
            tower = _TOWERS[library](config)
    except DiskKDError:
        raise
    except Exception as error:  # the libraries raise errors of many kinds for a configuration that is not theirs
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"{name} has no image tower of this configuration ({reason}); write it again") from error
    return ZeroShotClassifier(tower, num_classes, features)
