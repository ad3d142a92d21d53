"""What a look at a run says: one page, or its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from disk_kd.advising.look import Room, Seconds, Size, TeacherQuality
from disk_kd.storing import AFFORDABLE_BYTES

LENGTHS = (30, 100, 300)
"""Epochs for which hours are given."""
_FEW_PER_CLASS = 50
_MISCALIBRATED = 0.02
"""ECE that one temperature takes away, above which it is worth a word."""
_PAYS = 1.15
"""How much longer one thing must take than another to be worth a choice."""
_TRIED = 30
"""Full runs of a search that is advised: ten for each of ce, kd and dist."""


@dataclass(frozen=True)
class First:
    """Something to try.

    Attributes:
        text: what, and why.
        source: the page or table that shows it.
    """

    text: str
    source: str


@dataclass(frozen=True)
class Advice:
    """What is known of a run before it is trained.

    Attributes:
        recipe: what the run is called.
        data: name of the dataset.
        images: number of training images.
        classes: number of classes.
        image_size: side in pixels.
        device: where it would train, with the number of cores on a CPU.
        epochs: of the run as it is configured.
        batch_size: of the run.
        precision: of the run.
        views: of the run; None: a new one in each epoch.
        evaluate_every: epochs between two validations.
        models: names of student and teacher.
        teacher: its quality.
        sizes: of student and teacher.
        seconds: measured.
        room: what fits.
    """

    recipe: str
    data: str
    images: int
    classes: int
    image_size: int
    device: str
    epochs: int
    batch_size: int
    precision: str
    views: int | None
    evaluate_every: int
    models: dict[str, str]
    teacher: TeacherQuality
    sizes: dict[str, Size]
    seconds: Seconds
    room: Room

    @property
    def stores(self) -> bool:
        """Whether stored outputs save time: views are met again, or the teacher takes longer than reading."""
        return self.seconds.online > _PAYS * self.seconds.stored

    @property
    def affordable_views(self) -> int:
        """Views that a run stores by itself: at most 1 GiB, and half of the free disk."""
        return int(min(AFFORDABLE_BYTES, self.room.disk_bytes / 2) // self.room.view_bytes)

    @property
    def views_that_fit(self) -> int:
        """Views in half of the free disk."""
        return self.room.disk_bytes // 2 // self.room.view_bytes

    @property
    def faster_precision(self) -> str:
        """fp32 or bf16: the faster one here, if the difference is worth a choice; else that of the run."""
        other = "fp32" if self.precision == "bf16" else "bf16"
        return other if self.seconds.stored > _PAYS * self.seconds.other_precision else self.precision

    def hours(self, epochs: int) -> dict[str, float]:
        """Hours of a run of that length, with validation: labels alone, teacher online, teacher stored.

        Stored counts the making of the store, with the views of the run, or with as many as epochs.
        """
        checks = epochs / self.evaluate_every * self.seconds.validation
        views = min(self.views or epochs, epochs)
        spent = {
            "labels": epochs * self.seconds.labels,
            "online": epochs * self.seconds.online,
            "stored": epochs * self.seconds.stored + views * self.seconds.view,
        }
        return {name: (value + checks) / 3600 for name, value in spent.items()}

    @property
    def search_hours(self) -> float:
        """Hours of a search of thirty full runs, with runs as they are configured."""
        one = self.hours(self.epochs)
        return _TRIED * min(one["online"], one["stored"])

    @property
    def first(self) -> list[First]:
        """What to try first, and why."""
        return [*self._methods(), *self._teacher_hints(), *self._costs()]

    def _methods(self) -> Iterator[First]:
        yield First(
            "Train the labels alone (--method ce) as the baseline, then kd with temperatures 1, 2 and 4 and two weight"
            " decays: where methods were tuned alike, kd was the best or tied with the best.",
            "docs/results.md, results/tuned-kd/README.md",
        )
        yield First(
            "Then dist: it led the tables of untuned methods.", "docs/choose.md, results/methods-16px/README.md"
        )
        if self.images / self.classes < _FEW_PER_CLASS:
            yield First(
                f"There are {self.images / self.classes:.0f} images a class: with few images a hint helped most, so try"
                " --method ce --hint fitnet.",
                "results/digits-methods/README.md",
            )

    def _teacher_hints(self) -> Iterator[First]:
        chance = 100 / self.classes
        if self.teacher.top1 < 2 * chance:
            yield First(
                f"The teacher has {self.teacher.top1:.1f} %, near chance ({chance:.1f} %): check its weights, its"
                " normalisation and the order of its classes before anything else.",
                "docs/own-data.md",
            )
        elif self.teacher.split == "validation" and self.teacher.ece - self.teacher.ece_scaled > _MISCALIBRATED:
            how = "too confident" if self.teacher.temperature > 1 else "not confident enough"
            yield First(
                f"The teacher is {how} (ECE {self.teacher.ece:.3f}, {self.teacher.ece_scaled:.3f} at T"
                f" {self.teacher.temperature:.2f}): temperatures matter more than usual.",
                "docs/questions.md",
            )

    def _costs(self) -> Iterator[First]:
        if self.stores:
            yield First(
                f"Store the teacher's outputs: an epoch takes {self.seconds.stored:.3g} s in the place of"
                f" {self.seconds.online:.3g} s, and one view is made in {self.seconds.view:.3g} s and shared by all"
                " runs of a search.",
                "docs/teacher-store.md",
            )
        else:
            yield First("Run the teacher in each step: a store would save little time here.", "docs/teacher-store.md")
        if self.faster_precision != self.precision:
            share = self.seconds.other_precision / self.seconds.stored
            yield First(
                f"Give --train.precision {self.faster_precision}: a step takes {share:.2f} of the time here; compare"
                " the accuracy once.",
                "docs/performance.md",
            )
        yield First(
            f"Search in one command: disk-kd tune {self.recipe} --hours {self.search_hours:.2g} tries about {_TRIED}"
            " full runs' worth of settings, and tells what distilling gains.",
            "docs/tune.md",
        )

    def as_dict(self) -> dict[str, Any]:
        """All numbers, and what to try first."""
        return {
            **asdict(self),
            "stores": self.stores,
            "affordable_views": self.affordable_views,
            "views_that_fit": self.views_that_fit,
            "faster_precision": self.faster_precision,
            "hours": {str(epochs): self.hours(epochs) for epochs in LENGTHS},
            "search_hours": self.search_hours,
            "first": [asdict(one) for one in self.first],
        }
