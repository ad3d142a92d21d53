"""One zero-shot teacher, from its settings to a folder that every command takes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from disk_kd.build import load_data
from disk_kd.data import Dataset, workers_watched
from disk_kd.data.settings import DataSettings
from disk_kd.errors import ConfigError, ModelError
from disk_kd.models.zero_shot import ZeroShotClassifier, library_of, load_clip
from disk_kd.models.zero_shot.classifier import class_embeddings
from disk_kd.plugins import ZERO_SHOT
from disk_kd.teacher import weights_hash
from disk_kd.written import Written, check_output, write_teacher
from disk_kd.zeroshot.settings import ZeroShotSettings
from disk_kd.zeroshot.words import class_words

ZERO_SHOT_FILE = "zeroshot.json"
"""The file with the words and templates of a zero-shot teacher."""


@dataclass(frozen=True)
class ZeroShotResult:
    """A zero-shot teacher.

    Attributes:
        folder: the folder of the teacher.
        summary: "model", "words" (by class name), "templates", "features", "scale", "bias", "probabilities" (softmax or
            sigmoid, as the model was trained), "image_size" and "text_s".
        reused: whether the folder had the same teacher already.
    """

    folder: Path
    summary: dict[str, Any]
    reused: bool = False


def zero_shot(settings: ZeroShotSettings, console: Console | None = None) -> ZeroShotResult:
    """Make a teacher from class names and prompts. The text tower runs once.

    Raises:
        DiskKDError: the input is not valid.
        OSError: the disk is full or not writable.
    """
    console = console or Console(quiet=True)
    console.print(f"Loading {settings.model}", highlight=False, markup=False, soft_wrap=True)
    clip = load_clip(settings.model, settings.pretrained)
    dataset = _without_images(replace(settings.data, image_size=clip.image_size))
    if dataset.in_chans != 3:
        raise ModelError(
            f"{settings.model} takes colour images of 3 channels, those of {dataset.name} have {dataset.in_chans}; give"
            " another --data.name"
        )
    words = class_words(dataset, settings.names)
    facts = {
        "model": settings.model,
        "tower": weights_hash(clip.tower),
        "words": dict(zip(dataset.class_names, words, strict=True)),
        "templates": list(settings.templates),
    }
    facts = json.loads(json.dumps(facts))
    if (done := check_output(settings.folder, ZERO_SHOT_FILE, facts)) is not None:
        return ZeroShotResult(settings.folder, done, reused=True)
    begun = time.monotonic()
    text_KD = class_embeddings(clip, words, settings.templates)
    text_s = time.monotonic() - begun
    if not bool(text_KD.isfinite().all()):
        raise ModelError(f"the text embeddings of {settings.model} are not finite; check its weights")
    written = Written(
        name=f"{ZERO_SHOT}{library_of(settings.model)}",
        options={"features": text_KD.shape[1], "config": clip.config},
        model=ZeroShotClassifier.of(clip, text_KD),
        image_size=clip.image_size,
        data=replace(settings.data, image_size=clip.image_size),
        description=f"zero-shot classifier of {settings.model}",
    )
    summary = {
        "model": settings.model,
        "words": facts["words"],
        "templates": facts["templates"],
        "features": text_KD.shape[1],
        "scale": clip.scale,
        "bias": clip.bias,
        "probabilities": "sigmoid" if clip.sigmoid else "softmax",
        "image_size": clip.image_size,
        "text_s": round(text_s, 2),
    }
    write_teacher(settings.folder, written, dataset, ZERO_SHOT_FILE, facts, summary)
    return ZeroShotResult(settings.folder, summary)


def _without_images(data: DataSettings) -> Dataset:
    """The dataset with its classes. Its images are not read if they are files."""
    with workers_watched():
        try:
            return load_data(replace(data, stream=True))
        except ConfigError:  # the images are not files
            return load_data(data)
