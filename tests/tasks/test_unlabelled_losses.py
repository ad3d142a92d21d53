"""Losses of batches in which some images have no label, against a computation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.helpers import exact_helper
from disk_kd.hints import Context
from disk_kd.hints.crd import CRDHint
from disk_kd.losses import dist_loss, kd_loss, scaffolded_kl
from disk_kd.support import UNLABELLED
from disk_kd.tasks import METHODS, StudentTask

CLASSES, IMAGES = 4, 8
GENERATOR = torch.Generator().manual_seed(0)
S, T = torch.randn(2, IMAGES, CLASSES, generator=GENERATOR).mul(2).unbind()
LABELS = torch.tensor([1, UNLABELLED, 0, UNLABELLED, UNLABELLED, 3, UNLABELLED, UNLABELLED])
KNOWN = LABELS != UNLABELLED
NONE = torch.full((IMAGES,), UNLABELLED)


class Table(nn.Module):
    """A model whose logits are those of the image's number, the value of its first pixel."""

    num_classes = CLASSES

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x[:, 0, 0, 0].long()]


def task_of(name: str, **options: Any) -> StudentTask:
    return METHODS[name](Table(S), Table(T), **options)


def images(count: int = IMAGES) -> Tensor:
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def cross_entropy() -> Tensor:
    """The mean over the labelled images."""
    log_s = S.log_softmax(1)
    return -torch.stack([log_s[i, LABELS[i]] for i in range(IMAGES) if KNOWN[i]]).mean()


TEACHERS = {
    "kd": ({"temperature": 2.0}, lambda: kd_loss(S, T, student_temperature=2.0, teacher_temperature=2.0), 0.9, 0.1),
    "dist": ({}, lambda: dist_loss(S, T, inter_weight=2.0, intra_weight=2.0, temperature=4.0), 1.0, 1.0),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_labels_count_for_labelled_images_and_the_teacher_for_all(name: str) -> None:
    options, teacher_loss, weight, ce_weight = TEACHERS[name]
    result = task_of(name, **options)(images(), LABELS)
    torch.testing.assert_close(result["ce_loss"], cross_entropy())
    torch.testing.assert_close(result["loss"], weight * teacher_loss() + ce_weight * cross_entropy())
    without = task_of(name, **options)(images(), NONE)
    torch.testing.assert_close(without["loss"], weight * teacher_loss())
    assert without["ce_loss"] == 0


def test_the_teachers_first_class_stands_for_a_missing_label_in_disk() -> None:
    task = task_of("disk", top_k=1, price=0.3, price_rate=0.0, student_temperature=1.5, teacher_temperature=2.0)
    stand_in = torch.where(KNOWN, LABELS, T.argmax(1))
    terms = {"top_k": 1, "student_temperature": 1.5, "teacher_temperature": 2.0}
    g = exact_helper(S, T, stand_in, price=0.3, max_ce=task.settings.max_ce, **terms)  # type: ignore[attr-defined]
    scaffold = 1.5 * 2.0 * scaffolded_kl(S, T, stand_in, g, **terms)
    ce_B = torch.stack([-S.log_softmax(1)[i, stand_in[i]] for i in range(IMAGES)])
    used = (g * ce_B.clamp(max=task.settings.max_ce)).mean()  # type: ignore[attr-defined]

    result = task(images(), LABELS)
    weights = task.settings  # type: ignore[attr-defined]
    torch.testing.assert_close(result["loss"], weights.kd_weight * scaffold + weights.ce_weight * cross_entropy())
    torch.testing.assert_close(result["budget_used"], used)
    assert g.max() > 0


@pytest.mark.parametrize("variant", ["paper", "imagenet"])
def test_the_released_forms_of_disk_take_images_without_labels(variant: str) -> None:
    task = task_of("disk", variant=variant, helper=0.5)
    filled = torch.where(KNOWN, LABELS, T.argmax(1))
    one, other = task(images(), LABELS), task(images(), filled)
    torch.testing.assert_close(one["scaffold_loss"], other["scaffold_loss"])
    torch.testing.assert_close(one["ce_loss"], cross_entropy())


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up_to_the_batch_wherever_its_labels_are(parts: int) -> None:
    whole = task_of("kd")
    whole(images(), LABELS)["loss"].backward()
    divided = task_of("kd")
    divided.expect_unlabelled()
    divided.set_labelled_share(3 / IMAGES)
    for some, labels in zip(images().chunk(parts), LABELS.chunk(parts), strict=True):
        (divided(some, labels)["loss"] / parts).backward()
    torch.testing.assert_close(divided.student.logits.grad, whole.student.logits.grad)  # type: ignore[union-attr]


def test_a_batch_without_a_label_in_all_its_parts_gives_no_cross_entropy() -> None:
    task = task_of("kd")
    task.expect_unlabelled()
    task.set_labelled_share(0.0)
    result = task(images(), NONE)
    assert result["ce_loss"] == 0
    result["loss"].backward()
    assert task.student.logits.grad.isfinite().all()  # type: ignore[union-attr,operator]


def test_methods_that_cannot_learn_without_labels_say_what_to_use() -> None:
    for name, method in METHODS.items():
        if name.startswith("timm"):
            continue
        if name in ("ce", "dkd", "nkd", "rld"):
            task = METHODS["ce"](Table(S)) if name == "ce" else method(Table(S), Table(T))
            with pytest.raises(ConfigError, match=rf"does not learn from images without labels: {name} .*(kd|hint)"):
                task.expect_unlabelled()
        assert method.unlabelled_use


def test_a_sample_without_a_label_is_a_class_of_its_own_for_crd() -> None:
    labels = torch.tensor([0, 1, UNLABELLED, 0, UNLABELLED, -1, 1])
    context = Context(Flat(), Flat(), 1, 2, 2, labels)
    hint = CRDHint(context, dimensions=4, negatives=64, student_layer="flat", teacher_layer="flat")
    assert hint.classes.tolist() == [0, 1, 2, 0, 3, -1, 1]
    drawn = hint.contrast.draw_negatives(hint.classes[[2, 0]], torch.tensor([2, 0]))
    assert set(drawn[0].tolist()) == {0, 1, 3, 4, 6}
    assert set(drawn[1].tolist()) == {1, 2, 4, 6}
    features = {"flat": torch.randn(2, 4, generator=GENERATOR)}
    assert hint(features, features, torch.tensor([UNLABELLED, 0]), torch.tensor([2, 0])).isfinite()


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(x)
