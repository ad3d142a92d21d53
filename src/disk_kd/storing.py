"""When a teacher's outputs are stored, where, and in which store a run reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from disk_kd.build import train_loader
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit
from disk_kd.devices import inference_batch
from disk_kd.errors import ConfigError
from disk_kd.tasks import StudentTask
from disk_kd.teacher import TeacherStore, store_bytes, teacher_facts
from disk_kd.training import Display

AFFORDABLE_BYTES = 2**30
"""Most bytes of stored teacher outputs that one run makes unasked."""


def settle_views(config: RunConfig) -> RunConfig:
    """Give a run of a comparison, where `data.views` is left open, one view for each of its student epochs.

    Each epoch still meets a new augmentation. It is the same one in all runs of as many epochs, so that rows with
    and without a stored teacher see the same images, and can share the teacher's outputs.
    """
    if not config.shares_views or config.data.views is not None or _new_each_step(config):
        return config
    return config.decided({"data.views": config.train.epochs})


def settle_store(config: RunConfig, task: StudentTask, split: AnySplit, epochs: int, console: Console) -> RunConfig:
    """Decide whether to store the teacher's outputs, where the config leaves it open.

    The decision never changes the images of a run. Without `data.views` each epoch has a new view, stored or not: the
    outputs are then stored if all epochs take at most `AFFORDABLE_BYTES`. With it, they are stored if views are met
    again, or were stored before. A comparison shares them among its runs, so there they are stored if they take at
    most a quarter of the free disk. Half of the free disk is the limit in each case.

    Args:
        config: of the run.
        task: says which outputs are needed.
        split: the training samples.
        epochs: of the run, in the phase that has the most.
        console: is told why, where storing would not pay.

    Raises:
        ConfigError: outputs are to be stored of images that never come back, or more than the disk holds.
    """
    if config.teacher is None or task.teacher is None or config.teacher.store is False:
        return config
    if new_each_step := _new_each_step(config):
        if config.teacher.store is True:
            raise ConfigError(f"{new_each_step}, whose teacher outputs cannot be stored; give teacher.store=false")
        return config.decided({"teacher.store": False})
    views = config.data.views or epochs
    if config.teacher.store is True:
        _check_room(config, task, split, views)
        return config.decided({"data.views": views})
    size, free = views * view_bytes(config, task, split), _free_bytes(config.runs)
    there = config.data.views is not None and TeacherStore.holds(store_folder(config, task, split), task.needs, views)
    if config.data.views is None:
        stored = size <= AFFORDABLE_BYTES
    else:
        stored = views < epochs or there or (config.shares_views and size <= free // 4)
    if stored and not there and size > free // 2:
        stored = False
        console.print(
            f"The teacher runs at each step: the disk has no room for {views} views of its outputs,"
            f" {size / 2**30:.1f} GiB",
            soft_wrap=True,
        )
    return config.decided({"teacher.store": stored} | ({"data.views": views} if stored else {}))


def _check_room(config: RunConfig, task: StudentTask, split: AnySplit, views: int) -> None:
    """Refuse to store more views than the disk holds, beside those that are stored already.

    Raises:
        ConfigError: the disk has no room for them.
    """
    assert task.teacher is not None
    needs, free = task.teacher.needs, _free_bytes(config.runs)
    share = TeacherStore.missing(store_folder(config, task, split), needs, views) / len(needs)
    size = share * view_bytes(config, task, split)
    if size > free:
        raise ConfigError(
            f"{views:,} views of the teacher's outputs take {size / 2**30:,.1f} GiB more, the disk of {config.runs} has"
            f" {free / 2**30:,.1f} GiB free; give fewer --views, or --runs on another disk"
        )


def _new_each_step(config: RunConfig) -> str | None:
    """Why no image comes back; None where images do."""
    if config.data.mix.on:
        return "data.mix makes new images at each step"
    if config.data.timm.repeats > 1:
        return "data.timm.repeats makes new views at each step"
    return None


def open_store(config: RunConfig, task: StudentTask, split: AnySplit, console: Console) -> TeacherStore | None:
    """The teacher's stored outputs, made where there are none yet; None where the teacher is to run at each step.

    Raises:
        ConfigError: fewer logits are kept than the method tells apart.
        CheckpointError, RunError: as `TeacherStore.build`.
    """
    if config.teacher is None or task.teacher is None or config.teacher.store is not True:
        return None
    views, top_k = config.data.views or 1, config.teacher.store_top_k
    if top_k is not None and top_k < task.top_logits:
        raise ConfigError(
            f"the method tells the teacher's {task.top_logits} largest logits apart, teacher.store_top_k keeps {top_k};"
            " raise it, or leave it out to keep all"
        )
    folder = store_folder(config, task, split)
    loader = train_loader(
        config, task, split, batch_size=inference_batch(task.device), shuffle=False, drop_last=False, mix=None
    )
    display = Display(views * loader.steps_per_epoch, title=f"teacher's outputs, {views} views", console=console)
    size = views * view_bytes(config, task, split) / 2**20
    how = "made once, then shared; --teacher.store false runs the teacher at each step instead"
    display.line(f"Stored teacher outputs: {folder} ({views} views of {len(split):,} samples, {size:,.0f} MiB; {how})")
    with display:
        store = TeacherStore.build(
            folder,
            task.teacher,
            loader,
            views=views,
            samples=int(split.ids.max()) + 1,
            manifest=store_facts(config, split),
            top_k=top_k,
            progress=lambda done, total: display.step(done),
        )
    store.preload(task.device)
    return store


def store_facts(config: RunConfig, split: AnySplit) -> dict[str, Any]:
    """What stored outputs depend on beside the teacher."""
    return {
        "data_sha256": split.fingerprint(),
        "augment": config.data.augment.facts(),
        "view_seed": config.data.view_seed,
    } | ({"timm": asdict(config.data.timm)} if config.data.timm.enabled else {})


def store_folder(config: RunConfig, task: StudentTask, split: AnySplit) -> Path:
    """The folder of the outputs of this teacher, for these samples and augmentations: one for all runs."""
    assert config.teacher is not None
    assert task.teacher is not None
    facts = {**store_facts(config, split), **teacher_facts(task.teacher), "top_k": config.teacher.store_top_k}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return config.runs / "teacher-store" / key


def view_bytes(config: RunConfig, task: StudentTask, split: AnySplit) -> int:
    """Bytes of one view of the stored outputs that the task needs."""
    assert config.teacher is not None
    assert task.teacher is not None
    image = torch.zeros(1, *split.shape, device=task.device)
    numbers = {need: output.numel() for need, output in task.teacher(image).items()}
    logits = numbers.pop("logits", 0)
    return store_bytes(
        samples=int(split.ids.max()) + 1,
        views=1,
        num_classes=logits,
        map_size=sum(numbers.values()),  # of all other outputs, which are stored as maps are
        top_k=config.teacher.store_top_k,
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` is on, or will be on."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free
