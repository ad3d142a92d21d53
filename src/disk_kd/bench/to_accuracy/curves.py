"""Accuracy over time: the measurements, and the results derived from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """A student after an epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        images: number of images that the student has trained on in total.
        seconds: seconds since the raw data, without evaluation.
        top1: validation accuracy in percent.
    """

    epoch: int
    images: int
    seconds: float
    top1: float


@dataclass
class Curve:
    """The training of a contestant.

    Attributes:
        name: key of `CONTESTANTS`.
        title: title for tables.
        is_peer: whether it uses the loop of another tool.
        epochs: number of epochs of its training.
        prepare_s: seconds before the first epoch: images read, models built, step compiled, teacher's outputs stored.
        points: one point for each epoch.
        test_top1: test accuracy in percent after the last epoch; None before, and without a test split.
    """

    name: str
    title: str
    is_peer: bool
    epochs: int
    prepare_s: float = 0.0
    points: list[Point] = field(default_factory=list)
    test_top1: float | None = None

    @property
    def done(self) -> bool:
        """Whether all epochs are finished."""
        return len(self.points) >= self.epochs

    @property
    def final_top1(self) -> float:
        """Validation accuracy in percent after the last epoch."""
        return self.points[-1].top1

    @property
    def seconds(self) -> float:
        """Seconds in total."""
        return self.points[-1].seconds if self.points else self.prepare_s

    def seconds_to(self, top1: float) -> float | None:
        """Seconds until the end of the first epoch with at least this validation top-1; None if there is none."""
        return next((point.seconds for point in self.points if point.top1 >= top1), None)


def curve_of(facts: dict[str, Any]) -> Curve:
    """The curve that `dataclasses.asdict` wrote."""
    return Curve(**{**facts, "points": [Point(**point) for point in facts["points"]]})


@dataclass(frozen=True)
class Duel:
    """One of our contestants and a peer: seconds until each reaches the peer's final validation top-1.

    Attributes:
        ours, peer: titles.
        top1: the peer's final accuracy in percent.
        ours_s: seconds of ours; None: never reached.
        peer_s: seconds of the peer until its first epoch with this accuracy.
    """

    ours: str
    peer: str
    top1: float
    ours_s: float | None
    peer_s: float

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        return None if self.ours_s is None else self.peer_s / self.ours_s


def duels(curves: Iterable[Curve]) -> list[Duel]:
    """Every contestant of ours against every peer."""
    curves = list(curves)
    pairs = [(ours, peer) for peer in curves if peer.is_peer for ours in curves if not ours.is_peer]
    return [
        Duel(ours.title, peer.title, peer.final_top1, ours.seconds_to(peer.final_top1), reached)
        for ours, peer in pairs
        if (reached := peer.seconds_to(peer.final_top1)) is not None
    ]
