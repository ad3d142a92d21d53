"""Look at a run and say what follows."""

from __future__ import annotations

import torch

from disk_kd import ranks
from disk_kd.advising.advice import Advice
from disk_kd.advising.look import check_teaches, room, seconds, sizes, teacher_quality
from disk_kd.advising.timing import Parts
from disk_kd.config import RunConfig
from disk_kd.memory import keep_memory


def advise(config: RunConfig, recipe: str = "RECIPE") -> Advice:
    """What is known of a run before it is trained. It takes some steps of training, and writes nothing.

    Args:
        config: of the run; its method has a teacher.
        recipe: what the run is called.

    Raises:
        ConfigError: the method has no teacher.
        DiskKDError: data or weights are missing, or do not fit.
    """
    check_teaches(config)
    keep_memory()
    parts = Parts.of(config)
    data, train, teacher = parts.dataset, config.train, parts.config.teacher
    assert teacher is not None
    quality, room_found = teacher_quality(parts), room(parts)
    return Advice(
        recipe=recipe,
        data=data.name,
        images=len(data.train),
        classes=data.num_classes,
        image_size=data.image_size,
        device=_device_text(parts.device),
        epochs=train.epochs,
        batch_size=parts.loader().batch_size,
        precision=train.precision,
        views=config.data.views,
        evaluate_every=train.evaluate_every,
        models={"student": config.student.name, "teacher": ", ".join(one.name for one in teacher.each)},
        teacher=quality,
        sizes=sizes(parts),
        seconds=seconds(parts),
        room=room_found,
    )


def _device_text(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{device.type} with {torch.get_num_threads()} of {ranks.cores()} cores"
        if device.type == "cpu"
        else str(device)
    )
