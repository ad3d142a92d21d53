"""Settings of a zero-shot teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from disk_kd.config import check_root, with_name
from disk_kd.data.settings import DataSettings, with_absolute_paths
from disk_kd.errors import ConfigError, nearest, shown
from disk_kd.files import user_path
from disk_kd.models.zero_shot import library_of
from disk_kd.options import options_of, read

TEMPLATES = (
    "a photo of a {}.",
    "a close photo of a {}.",
    "a blurry photo of a {}.",
    "a photo of one small {}.",
    "a photo of one large {}.",
    "a photo of the {} in bright light.",
    "a picture that shows a {}.",
)
"""Default prompts. {} stands for the word of a class."""


@dataclass(frozen=True)
class ZeroShotSettings:
    """The model, the class names and the prompts of a zero-shot teacher.

    Args:
        model: transformers:FOLDER_OR_NAME or open_clip:FOLDER_OR_NAME. open_clip also takes hf-hub:OWNER/NAME and
            MODEL/TAG.
        pretrained: Allow the download of the model from the hub. A local folder needs none.
        data: The dataset whose classes the teacher knows. Its images are not used.
        names: File with the word of each class: a YAML or JSON mapping from each class name to a word, or one word in a
            line in label order. null takes the words that the dataset has, the words of WordNet ids, or else the class
            names themselves.
        templates: Prompts, each with {} in the place of the word. The embeddings of a class are averaged over them.
        output: Folder to write (default: RUNS/zeroshot/MODEL).
        runs: Folder of run directories.
    """

    model: str
    pretrained: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    names: Path | None = None
    templates: tuple[str, ...] = TEMPLATES
    output: Path | None = None
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        library_of(self.model)
        if not self.templates:
            raise ConfigError("templates must list one prompt or more, such as ['a photo of a {}.']")
        for template in self.templates:
            if "{}" not in template:
                raise ConfigError(
                    f"the template {shown(template)!r} has no {{}} for the word of a class; write 'a photo of a {{}}.'"
                )

    @property
    def folder(self) -> Path:
        """The folder to write."""
        name = self.model.rstrip("/").rpartition("/")[2].rpartition(":")[2]
        return self.output or user_path(self.runs) / "zeroshot" / name


def read_zero_shot(words: tuple[str, ...], tree: Mapping[str, Any]) -> ZeroShotSettings:
    """The settings of `disk-kd zeroshot MODEL [options]`.

    Args:
        words: the model.
        tree: options: pretrained, data, names, templates, output and runs.

    Raises:
        ConfigError, ModelError: an unknown option or library, a value of the wrong type, or a template without {}.
    """
    if len(words) != 1:
        raise ConfigError("zeroshot needs exactly one model: transformers:FOLDER_OR_NAME or open_clip:FOLDER_OR_NAME")
    known = options_of(ZeroShotSettings)
    if unknown := next(iter(tree.keys() - known.keys()), None):
        raise ConfigError(f"unknown option {shown(unknown)}; {nearest(unknown, known)}")
    check_root(tree.get("data", {}), below={})
    settings = read(ZeroShotSettings, {**tree, "data": with_name(tree.get("data", {})), "model": words[0]})
    return replace(settings, data=with_absolute_paths(settings.data))
