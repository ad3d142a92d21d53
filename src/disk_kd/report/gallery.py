"""The section of the training examples that the helper carries most, and of those whose label the teacher doubts."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from disk_kd.report.inspection import Inspection, inspect_run
from disk_kd.report.items import Gallery, Item, Note, Picture, Section
from disk_kd.report.reading import Group
from disk_kd.report.subject import Subject

PICTURES, DOUBTED = 18, 12
MOST_LOOKS = 40_000
"""Images that the report shows the models, of all views together; a larger training split is sampled."""
_HELPED = 1e-3
_DOUBT = (
    "Help tells where the student cannot follow its teacher, not where a label is wrong: wrong labels stand first by"
    " the teacher's loss (disk-kd inspect --by teacher-loss)."
)


def most_helped(subject: Subject) -> Section:
    """Pictures of the training examples with the greatest g, where DiSK ran, and of those that the teacher doubts."""
    disk = any(group.uses_disk for group in subject.candidates)
    title = "The examples most helped" if disk else "The labels that the teacher doubts"
    chosen = subject.verdict.chosen
    if chosen is None:
        return Section("helped", title, [Note("Left out: no run is finished.", missing=True)])
    found = subject.attempt(lambda: _inspect(subject, chosen))
    if isinstance(found, Note):
        return Section("helped", title, [found])
    items = [*(_helped(found, chosen) if disk else []), *_doubted(found, disk)]
    return Section("helped", title, items or [Note("The teacher guesses the label of every training image.")])


def _helped(found: Inspection, chosen: Group) -> list[Item]:
    helped = [at for at in found.ranked() if float(found.help[at]) > 0][:PICTURES]
    if not helped:
        none = "No training example gets help: the student follows its teacher wherever help would pay."
        return [Note(_told(found, chosen)), Note(none)]
    pictures = [_picture(found, at, True) for at in helped]
    return [Note(_told(found, chosen)), Gallery("Training images, the most helped first", pictures)]


def _doubted(found: Inspection, disk: bool) -> list[Item]:
    doubted = [
        at for at in found.ranked("teacher-loss") if int(found.teacher_guess[at]) != int(found.split.targets[at])
    ]
    if not doubted:
        return []
    pictures = [_picture(found, at, disk) for at in doubted[:DOUBTED]]
    gallery = Gallery("Training images whose label the teacher doubts most", pictures)
    return [*([Note(_DOUBT)] if disk else []), gallery]


def _inspect(subject: Subject, chosen: Group) -> Inspection:
    run = chosen.chosen
    samples = len(subject.outputs.dataset(run.config).train)
    views = max(1, min(4, MOST_LOOKS // samples))
    return inspect_run(run, subject.outputs, teacher=subject.mentor(chosen).config, views=views, most=MOST_LOOKS)


def _told(found: Inspection, chosen: Group) -> str:
    """How g was got, and how many examples get some."""
    share = 100 * float((found.help > _HELPED).double().mean())
    seen = f"{len(found.split):,} of {found.of:,}" if len(found.split) < found.of else f"all {found.of:,}"
    views = "one view" if found.views == 1 else f"{found.views} views"
    return (
        f"The exact helper of DiSK on {chosen.name} and its teacher, as they are at the end, over {seen} training"
        f" images in {views} each: {found.settings.told()}. {share:.1f}% of them get g above {_HELPED:g}. What stands"
        " first is hard or ambiguous for the student, or the student is surer of it than its teacher. disk-kd inspect"
        " writes them all as CSV."
    )


def _picture(found: Inspection, at: int, disk: bool) -> Picture:
    names, index = found.split.shown_names, int(found.split.ids[at])
    label = names[int(found.split.targets[at])]
    lines = [("label", label + (" (flipped)" if found.flipped is not None and bool(found.flipped[at]) else ""), False)]
    for who in ("teacher", "student"):
        guess = names[int(getattr(found, f"{who}_guess")[at])]
        lines.append((who, f"{guess}, {100 * float(getattr(found, f'{who}_best')[at]):.0f}%", guess != label))
    lines += [("g", f"{float(found.help[at]):.3f}", False)] if disk else []
    lines.append(("index", str(index), False))
    return Picture(
        _data_uri(found.split.pictures(torch.tensor([at]))[0]), f"Training image {index}, label {label}", lines
    )


def _data_uri(image_CHW: Tensor) -> str:
    """The image as a PNG in a URI."""
    pixels_HWC = image_CHW.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
