"""The section of the training examples that get most help, and of those whose label the teacher doubts."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from disk_kd.report.content import ReportContent
from disk_kd.report.inspection import Inspection, inspect_run
from disk_kd.report.items import Gallery, Item, Note, Picture, Section
from disk_kd.report.reading import Group

PICTURES, DOUBTED = 18, 12
MOST_LOOKS = 40_000
"""Maximum number of images, over all views, on which the report evaluates the models. Larger splits are sampled."""
_HELPED = 1e-3
_DOUBT = (
    "Help shows where the student cannot follow its teacher. It is a poor sign of wrong labels. The teacher's loss"
    " finds those best (disk-kd inspect --by teacher-loss)."
)


def most_helped(content: ReportContent) -> Section:
    """The training examples with most help, and those whose label the teacher doubts.

    The first part exists if a method of the report helps single examples.
    """
    helps = any(group.helps_examples for group in content.candidates)
    title = "Examples with most help" if helps else "Labels that the teacher doubts"
    chosen = content.verdict.chosen
    if chosen is None:
        return Section("helped", title, [Note("Not shown: no run is finished.", missing=True)])
    found = content.attempt(lambda: _inspect(content, chosen))
    if isinstance(found, Note):
        return Section("helped", title, [found])
    items = [*(_helped(found, chosen) if helps else []), *_doubted(found, helps)]
    return Section("helped", title, items or [Note("The teacher predicts the label of every training image.")])


def _helped(found: Inspection, chosen: Group) -> list[Item]:
    helped = [at for at in found.ranked() if float(found.help[at]) > 0][:PICTURES]
    if not helped:
        none = "No training example gets help, because the student follows its teacher."
        return [Note(_source(found, chosen)), Note(none)]
    pictures = [_picture(found, at, True) for at in helped]
    return [Note(_source(found, chosen)), Gallery("Training images, those with most help first", pictures)]


def _doubted(found: Inspection, helps: bool) -> list[Item]:
    doubted = [
        at for at in found.ranked("teacher-loss") if int(found.teacher_guess[at]) != int(found.split.targets[at])
    ]
    if not doubted:
        return []
    pictures = [_picture(found, at, helps) for at in doubted[:DOUBTED]]
    gallery = Gallery("Training images whose label the teacher doubts most", pictures)
    return [*([Note(_DOUBT)] if helps else []), gallery]


def _inspect(content: ReportContent, chosen: Group) -> Inspection:
    run = chosen.chosen
    samples = len(content.outputs.dataset(run.config).train)
    views = max(1, min(4, MOST_LOOKS // samples))
    return inspect_run(run, content.outputs, teacher=content.teacher_of(chosen).config, views=views, most=MOST_LOOKS)


def _source(found: Inspection, chosen: Group) -> str:
    """States how the help was computed and how many examples get some."""
    share = 100 * float((found.help > _HELPED).double().mean())
    seen = f"{len(found.split):,} of {found.of:,}" if len(found.split) < found.of else f"all {found.of:,}"
    views = "one view" if found.views == 1 else f"{found.views} views"
    return (
        f"Help is computed by {found.helper.name} for {chosen.name} and its teacher at the end of training, on {seen}"
        f" training images with {views} each, with {found.helper.settings}. {share:.1f}% of them get help above"
        f" {_HELPED:g}. The first images are hard or ambiguous for the student, or the student is more confident than"
        " its teacher. disk-kd inspect writes all images as CSV."
    )


def _picture(found: Inspection, at: int, helps: bool) -> Picture:
    names, index = found.split.shown_names, int(found.split.ids[at])
    label = names[int(found.split.targets[at])]
    lines = [("label", label + (" (flipped)" if found.flipped is not None and bool(found.flipped[at]) else ""), False)]
    for who in ("teacher", "student"):
        guess = names[int(getattr(found, f"{who}_guess")[at])]
        lines.append((who, f"{guess}, {100 * float(getattr(found, f'{who}_best')[at]):.0f}%", guess != label))
    lines += [("help", f"{float(found.help[at]):.3f}", False)] if helps else []
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
