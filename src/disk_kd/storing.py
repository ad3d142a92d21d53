"""Teacher stores of runs: when outputs are stored, where, and which store a run reads."""

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
from disk_kd.teacher import AnyStore, Teacher, TeacherStore, joint_store, store_bytes, teacher_facts
from disk_kd.training import Display

AFFORDABLE_BYTES = 2**30
"""Maximum bytes of teacher outputs that a run stores by its own decision."""


def decide_views(config: RunConfig) -> RunConfig:
    """Give a run of a comparison one view for each student epoch, if `data.views` is null.

    Each epoch still has a new augmentation. Runs with the same number of epochs share the augmentations. Rows with and
    without a stored teacher then see the same images, and can share the teacher's outputs.
    """
    if not config.shares_views or config.data.views is not None or _new_each_step(config):
        return config
    return config.decided({"data.views": config.train.epochs})


def decide_store(config: RunConfig, task: StudentTask, split: AnySplit, epochs: int, console: Console) -> RunConfig:
    """Decide whether to store the teacher's outputs, if the config leaves it open.

    The decision never changes the images of a run. Without `data.views` each epoch has a new view, with or without a
    store; outputs are stored if all epochs take at most `AFFORDABLE_BYTES`. With `data.views`, they are stored if views
    repeat, or if they are stored already. Runs of a comparison share the store, so it may take a quarter of the free
    disk space. The limit is half of the free disk space in all cases.

    Args:
        config: configuration of the run.
        task: states which outputs are needed.
        split: the training samples.
        epochs: number of epochs of the longest phase.
        console: gets a message if storing does not pay.

    Raises:
        ConfigError: storing is requested but the images never repeat, or the disk has no room.
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
    there = config.data.views is not None and not missing_bytes(config, task, split, views)
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
    """Raise an error if the disk has no room for the views that are not stored yet.

    Raises:
        ConfigError: the disk has no room.
    """
    size, free = missing_bytes(config, task, split, views), _free_bytes(config.runs)
    if size > free:
        raise ConfigError(
            f"{views:,} views of the teacher's outputs need {size / 2**30:,.1f} GiB, the disk of {config.runs} has"
            f" {free / 2**30:,.1f} GiB free; give fewer --views, or --runs on another disk"
        )


def _new_each_step(config: RunConfig) -> str | None:
    """The reason why images never repeat; None if they do."""
    if config.data.mix.on:
        return "data.mix makes new images at each step"
    if config.data.timm.repeats > 1:
        return "data.timm.repeats makes new views at each step"
    return None


def open_store(config: RunConfig, task: StudentTask, split: AnySplit, console: Console) -> AnyStore | None:
    """The teacher's store, built if it does not exist; None if the teacher runs in each step.

    Each of several teachers has its own store, which a run of that teacher alone shares.

    Raises:
        ConfigError: the store keeps fewer logits than the method needs.
        CheckpointError, RunError: as for `TeacherStore.build`.
    """
    if config.teacher is None or task.teacher is None or config.teacher.store is not True:
        return None
    for each in config.teacher.each:
        if each.store_top_k is not None and each.store_top_k < task.top_logits:
            raise ConfigError(
                f"the method needs the teacher's {task.top_logits} largest logits, but teacher.store_top_k keeps"
                f" {each.store_top_k}; raise it, or leave it out to keep all"
            )
    stores = [_member_store(config, *member, task, split, console) for member in _members(config, task)]
    return joint_store(stores, task.teacher.joined)


def _members(config: RunConfig, task: StudentTask) -> list[tuple[Teacher, int | None]]:
    """Each teacher of a run, and how many of its logits are stored; None: all."""
    assert config.teacher is not None
    assert task.teacher is not None
    return [(one, each.store_top_k) for one, each in zip(task.teacher.members, config.teacher.each, strict=True)]


def _member_store(
    config: RunConfig, teacher: Teacher, top_k: int | None, task: StudentTask, split: AnySplit, console: Console
) -> TeacherStore:
    """The store of one teacher, built if it does not exist."""
    views = config.data.views or 1
    folder = store_folder(config, teacher, top_k, split)
    loader = train_loader(
        config, task, split, batch_size=inference_batch(task.device), shuffle=False, drop_last=False, mix=None
    )
    display = Display(views * loader.steps_per_epoch, title=f"teacher's outputs, {views} views", console=console)
    size = views * _member_bytes(teacher, top_k, task, split) / 2**20
    how = "made once, then shared; --teacher.store false runs the teacher at each step instead"
    display.line(f"Stored teacher outputs: {folder} ({views} views of {len(split):,} samples, {size:,.0f} MiB; {how})")
    with display:
        store = TeacherStore.build(
            folder,
            teacher,
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
    """What stored outputs depend on apart from the teacher."""
    return {
        "images_sha256": split.image_fingerprint(),
        "augment": config.data.augment.facts(),
        "view_seed": config.data.view_seed,
    } | ({"timm": asdict(config.data.timm)} if config.data.timm.enabled else {})


def store_folder(config: RunConfig, teacher: Teacher, top_k: int | None, split: AnySplit) -> Path:
    """The folder of the outputs for this teacher, these samples and augmentations. All runs share it."""
    facts = {**store_facts(config, split), **teacher_facts(teacher), "top_k": top_k}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return config.runs / "teacher-store" / key


def view_bytes(config: RunConfig, task: StudentTask, split: AnySplit) -> int:
    """Bytes of the outputs of one view that the task needs, of all teachers."""
    return sum(_member_bytes(*member, task, split) for member in _members(config, task))


def missing_bytes(config: RunConfig, task: StudentTask, split: AnySplit, views: int) -> float:
    """Bytes of the views, of all teachers, that are not stored yet."""
    size = 0.0
    for teacher, top_k in _members(config, task):
        missing = TeacherStore.missing(store_folder(config, teacher, top_k, split), teacher.needs, views)
        size += missing / len(teacher.needs) * _member_bytes(teacher, top_k, task, split) if missing else 0
    return size


def _member_bytes(teacher: Teacher, top_k: int | None, task: StudentTask, split: AnySplit) -> int:
    """Bytes of the outputs of one view that the task needs, of one teacher."""
    image = torch.zeros(1, *split.shape, device=task.device)
    numbers = {need: output.numel() for need, output in teacher(image).items()}
    logits = numbers.pop("logits", 0)
    return store_bytes(
        samples=int(split.ids.max()) + 1,
        views=1,
        num_classes=logits,
        map_size=sum(numbers.values()),  # for all other outputs
        top_k=top_k,
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk of `folder`, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free
