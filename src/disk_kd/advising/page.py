"""The page of `disk-kd advise`."""

from __future__ import annotations

import textwrap

from disk_kd.advising.advice import LENGTHS, Advice

_WIDTH = 100


def page(advice: Advice) -> str:
    """The advice as one page of plain text."""
    parts = [_models(advice), _time(advice), _room(advice), _first(advice)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _models(advice: Advice) -> list[str]:
    teacher, sizes = advice.teacher, advice.sizes
    title = f"{advice.recipe}: {advice.data}, {advice.images:,} training images, {advice.classes} classes"
    lines = [f"{title}, {advice.image_size}x{advice.image_size} pixels, on {advice.device}", ""]
    for part in ("student", "teacher"):
        size = sizes[part]
        lines.append(
            f"  {part:<8} {advice.models[part]}: {size.parameters:,} parameters, {size.multiply_adds:,} multiply-adds"
        )
    quality = f"top-1 {teacher.top1:.2f} %, NLL {teacher.nll:.3f}, ECE {teacher.ece:.3f}"
    scaled = f"ECE {teacher.ece_scaled:.3f} at temperature {teacher.temperature:.2f}"
    lines.append(f"           {quality} on {teacher.images:,} {teacher.split} images; {scaled}")
    if teacher.split == "training":
        lines.append("           there is no validation split, so these numbers are too good")
    return lines


def _time(advice: Advice) -> list[str]:
    seconds = advice.seconds
    views = f"{advice.views} views" if advice.views else "a new view in each epoch"
    lines = [
        f"Time, measured on a few steps (batch {advice.batch_size}, {advice.precision}, not compiled)",
        "",
        f"  {'':<26} {'s an epoch':>11}" + "".join(f"{f'{epochs} epochs':>13}" for epochs in LENGTHS),
    ]
    rows = {
        "labels": ("labels alone", seconds.labels),
        "online": ("teacher in each step", seconds.online),
        "stored": ("teacher's outputs stored", seconds.stored),
    }
    for key, (name, each) in rows.items():
        hours = "".join(f"{_duration(advice.hours(epochs)[key]):>13}" for epochs in LENGTHS)
        lines.append(f"  {name:<26} {each:>11.3g}{hours}")
    lines.append(
        f"  With validation ({seconds.validation:.2g} s each); stored with {views}, {seconds.view:.3g} s to make each."
    )
    return lines


def _room(advice: Advice) -> list[str]:
    room = advice.room
    most = min(room.most_images, advice.images)
    lines = [
        "Room",
        "",
        f"  disk    {_bytes(room.view_bytes)} for each view of the teacher's outputs; {_bytes(room.disk_bytes)} free:"
        f" {advice.views_that_fit:,} views fit in half of it",
        f"          a run stores {advice.affordable_views:,} views by itself (1 GiB), more with --teacher.store true",
        f"  memory  {_bytes(room.model_bytes)} for models and optimiser, {_bytes(room.activation_bytes_per_image)} for"
        f" each image of a batch; {_bytes(room.memory_bytes)} free: batches up to {most:,} fit",
    ]
    if advice.batch_size > room.most_images:
        lines.append(
            f"          batch {advice.batch_size} does not fit: lower train.batch_size, or raise train.accumulate"
        )
    lines.append(f"  precision {advice.faster_precision}" + _why(advice))
    return lines


def _why(advice: Advice) -> str:
    other = "fp32" if advice.precision == "bf16" else "bf16"
    return (
        f" ({advice.precision} {advice.seconds.stored:.3g} s an epoch, {other} {advice.seconds.other_precision:.3g} s)"
    )


def _first(advice: Advice) -> list[str]:
    lines = ["What to try first", ""]
    for number, one in enumerate(advice.first, 1):
        text = textwrap.wrap(f"{one.text} ({one.source})", _WIDTH - 5, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {number}. {text[0]}", *(f"     {line}" for line in text[1:])]
    return lines


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
