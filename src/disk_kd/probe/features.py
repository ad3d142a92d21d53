"""Pooled features of a backbone for a split, through the teacher store.

Shapes: V views, N samples, D features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from disk_kd.data import AnySplit, Loader
from disk_kd.data.augment import Augment
from disk_kd.data.settings import DataSettings
from disk_kd.devices import inference_batch
from disk_kd.errors import DataError, shown
from disk_kd.support import UNLABELLED
from disk_kd.teacher import Teacher, TeacherStore, teacher_facts
from disk_kd.training import Display

_NEEDED = 2
"""Minimum number of labelled training images of a class."""


def labelled(split: AnySplit) -> AnySplit:
    """The images of a split that have a label."""
    known = split.targets != UNLABELLED
    return split if bool(known.all()) else split.subset(known.nonzero().flatten())


def check_counts(split: AnySplit) -> None:
    """Check that every class has enough labelled images.

    Raises:
        DataError: a class has fewer than two.
    """
    counts = split.targets.bincount(minlength=len(split.class_names)).tolist()
    few = [label for label, count in enumerate(counts) if count < _NEEDED]
    if few:
        more = f" ({len(few)} classes have too few)" if len(few) > 1 else ""
        raise DataError(
            f"class {shown(split.class_names[few[0]])!r} has {counts[few[0]]} labelled training images{more}; a probe"
            f" needs at least {_NEEDED} of each class: label more, or leave the class out"
        )


def store_facts(split: AnySplit, data: DataSettings, augment: bool) -> dict[str, Any]:
    """What stored features depend on apart from the backbone, named as in the stores of runs."""
    facts = {
        "images_sha256": split.image_fingerprint(),
        "augment": (data.augment if augment else Augment()).facts(),
        "view_seed": data.view_seed,
    }
    return facts | ({"timm": asdict(data.timm)} if augment and data.timm.enabled else {})


def stored_features(
    teacher: Teacher, split: AnySplit, data: DataSettings, *, views: int, augment: bool, runs: Path, console: Console
) -> Tensor:
    """Pooled features (V, N, D) of a split, in its order, float32 on the CPU. They are computed once and then shared.

    Args:
        teacher: the backbone, which needs "pooled".
        split: the images, on the backbone's device or streamed.
        data: settings of the augmentation.
        views: V.
        augment: whether the images are augmented; views differ only then.
        runs: folder that contains the teacher store.
        console: console for progress.

    Raises:
        CheckpointError, RunError, ModelError: as for `TeacherStore.build`.
    """
    facts = store_facts(split, data, augment)
    key = {**facts, **teacher_facts(teacher), "top_k": None}
    folder = runs / "teacher-store" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    device = next(teacher.parameters()).device
    loader = Loader(
        split,
        batch_size=inference_batch(device),
        mean=teacher.input_mean,
        std=teacher.input_std,
        augment=data.augment if augment else None,
        augment_seed=data.view_seed,
        views=views,
        shuffle=False,
        drop_last=False,
        stand_in=False,
        device=device,
    )
    display = Display(views * loader.steps_per_epoch, title=f"backbone's features, {views} views", console=console)
    display.line(f"Stored features: {folder} ({views} views of {len(split):,} samples; made once, then shared)")
    with display:
        store = TeacherStore.build(
            folder,
            teacher,
            loader,
            views=views,
            samples=int(split.ids.max()) + 1,
            manifest=facts,
            progress=lambda done, total: display.step(done),
        )
    return torch.stack([store.read(split.ids, view, "cpu")["pooled"] for view in range(views)])
