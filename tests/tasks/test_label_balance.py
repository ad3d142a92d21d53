"""Class weights, logit adjustment, the teacher's confidence and self-training, against a computation by hand."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError
from disk_kd.losses import dist_loss, kd_loss
from disk_kd.support import UNLABELLED
from disk_kd.tasks import METHODS, StudentTask

CLASSES, IMAGES = 4, 8
GENERATOR = torch.Generator().manual_seed(0)
S, T = torch.randn(2, IMAGES, CLASSES, generator=GENERATOR).mul(2).unbind()
LABELS = torch.tensor([1, UNLABELLED, 0, UNLABELLED, UNLABELLED, 3, UNLABELLED, UNLABELLED])
COUNTS = torch.tensor([40, 20, 10, 10])
INVERSE = [4 / 11, 8 / 11, 16 / 11, 16 / 11]
CONFIDENCE = 0.8
NUMBERS = torch.arange(float(IMAGES)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


class Table(nn.Module):
    """A model whose logits are those of the image's number, the value of its first pixel."""

    num_classes = CLASSES

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x[:, 0, 0, 0].long()]


def task_of(name: str, **options: float) -> StudentTask:
    return METHODS[name](Table(S), *([] if name == "ce" else [Table(T)]), **options)  # type: ignore[arg-type]


def by_hand(shift: float = 0.0, smoothing: float = 0.0, weights: list[float] = INVERSE) -> float:
    """The labelled images' mean of w_y times the smoothed cross-entropy, one image at a time."""
    total, labelled = 0.0, 0
    for row, label in zip(S, LABELS.tolist(), strict=True):
        if label != UNLABELLED:
            log_p = (row + shift * (COUNTS / 80).log()).log_softmax(0)
            smooth = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
            total, labelled = total + weights[label] * float(smooth), labelled + 1
    return total / labelled


@pytest.mark.parametrize("name", ["ce", "kd", "dist", "disk"])
def test_every_method_weighs_its_labels(name: str) -> None:
    task = task_of(name)
    task.balance_labels(COUNTS, weights="inverse", logit_adjustment=1.5)
    result = task(NUMBERS, LABELS)
    assert float(result["ce_loss"]) == pytest.approx(by_hand(1.5), rel=1e-5)
    torch.testing.assert_close(result["output"], S)


def test_label_smoothing_is_weighed_with_its_image() -> None:
    task = task_of("ce", label_smoothing=0.2)
    task.balance_labels(COUNTS, weights="inverse")
    assert float(task(NUMBERS, LABELS)["loss"].detach()) == pytest.approx(by_hand(smoothing=0.2), rel=1e-5)
    assert task(NUMBERS, torch.full_like(LABELS, UNLABELLED))["loss"] == 0


def test_mixed_labels_are_weighed_in_their_shares() -> None:
    one, other = torch.arange(IMAGES) % CLASSES, torch.arange(IMAGES).flip(0) % CLASSES
    task = task_of("ce", label_smoothing=0.2)
    task.balance_labels(COUNTS, weights="effective", beta=0.9)
    shares = 0.7 * F.one_hot(one, CLASSES) + 0.3 * F.one_hot(other, CLASSES)
    expected = 0.7 * task(NUMBERS, one)["loss"] + 0.3 * task(NUMBERS, other)["loss"]
    torch.testing.assert_close(task(NUMBERS, shares.float())["loss"], expected)


@pytest.mark.parametrize("name", ["kd", "self-training"])
def test_parts_of_a_batch_add_up_to_the_batch(name: str) -> None:
    def prepared() -> StudentTask:
        task = task_of(name)
        task.count_confident(CONFIDENCE)
        task.balance_labels(COUNTS, weights="inverse", logit_adjustment=0.5)
        return task

    whole, divided = prepared(), prepared()
    whole(NUMBERS, LABELS)["loss"].backward()
    divided.expect_unlabelled()
    divided.set_labelled_share(3 / IMAGES)
    for some, labels in zip(NUMBERS.chunk(4), LABELS.chunk(4), strict=True):
        (divided(some, labels)["loss"] / 4).backward()
    torch.testing.assert_close(divided.student.logits.grad, whole.student.logits.grad)  # type: ignore[union-attr]


def counted() -> list[int]:
    return [i for i in range(IMAGES) if LABELS[i] != UNLABELLED or float(T[i].softmax(0).max()) >= CONFIDENCE]


def test_doubtful_images_without_a_label_do_not_count() -> None:
    rows = counted()
    assert len(rows) in range(4, IMAGES), "the example counts some unlabelled images and leaves out others"
    s, t = S[rows], T[rows]
    losses = {
        "kd": kd_loss(s, t, student_temperature=2.0, teacher_temperature=2.0),
        "dist": dist_loss(s, t, **task_of("dist").terms),  # type: ignore[arg-type]
    }
    for name, loss in losses.items():
        task = task_of(name)
        task.count_confident(CONFIDENCE)
        result = task(NUMBERS, LABELS)
        torch.testing.assert_close(result[f"{name}_loss"], loss * len(rows) / IMAGES)
        assert result["counted"] == len(rows) / IMAGES


def test_where_the_teacher_is_certain_of_nothing_the_labels_alone_teach() -> None:
    for name in ("kd", "dist", "self-training"):
        task = task_of(name)
        task.count_confident(1.0)
        result = task(NUMBERS, torch.full_like(LABELS, UNLABELLED))
        assert result["loss"] == 0
        result["loss"].backward()
        assert not task.student.logits.grad.any()  # type: ignore[union-attr,operator]


def test_self_training_by_hand() -> None:
    unlabelled = [i for i in range(IMAGES) if LABELS[i] == UNLABELLED]
    certain = [i for i in unlabelled if float(T[i].softmax(0).max()) >= CONFIDENCE]
    assert 0 < len(certain) < len(unlabelled)
    pseudo = sum(-float(S[i].log_softmax(0)[int(T[i].argmax())]) for i in certain) / len(unlabelled)
    task = task_of("self-training", pseudo_weight=0.5)
    task.count_confident(CONFIDENCE)
    result = task(NUMBERS, LABELS)
    assert float(result["pseudo_loss"]) == pytest.approx(pseudo, rel=1e-5)
    assert float(result["loss"].detach()) == pytest.approx(by_hand(weights=[1.0] * 4) + 0.5 * pseudo, rel=1e-5)
    assert result["counted"] == len(certain) / IMAGES


def test_what_a_method_cannot_do_is_told() -> None:
    models = (timm.create_model("cifar_resnet10_xxxs", num_classes=CLASSES) for _ in range(2))
    with pytest.raises(ConfigError, match="TimmLogitTask does not weigh classes, because timm computes its loss"):
        METHODS["timm-logits"](*models).balance_labels(COUNTS, weights="inverse")
    for name in ("ce", "disk"):
        task_of(name).count_confident(0.0)
        with pytest.raises(ConfigError, match=r"data\.unlabelled_confidence is for methods that compare logits"):
            task_of(name).count_confident(0.9)
    with pytest.raises(ConfigError, match=r"confidence must be in \[0, 1\], not 1\.5"):
        task_of("kd").count_confident(1.5)
