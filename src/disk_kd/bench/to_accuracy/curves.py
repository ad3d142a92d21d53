"""Accuracy against wall clock: what is measured, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """A student after an epoch.

    Attributes:
        epoch: from 1.
        images: that the student has seen in all.
        seconds: of wall clock from the raw data on, without evaluation.
        top1: percent on validation.
    """

    epoch: int
    images: int
    seconds: float
    top1: float


@dataclass
class Curve:
    """A contestant's training.

    Attributes:
        name: key of `CONTESTANTS`.
        title: what a person reads.
        is_peer: whether it is another tool's loop.
        epochs: that it trains for.
        prepare_s: seconds before the first epoch: images read, models built, step compiled, teacher's outputs stored.
        points: one an epoch.
        test_top1: percent on test after the last epoch; None before, and without such a split.
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
        """Whether all epochs are trained."""
        return len(self.points) >= self.epochs

    @property
    def final_top1(self) -> float:
        """Percent on validation after the last epoch."""
        return self.points[-1].top1

    @property
    def seconds(self) -> float:
        """Of wall clock in all."""
        return self.points[-1].seconds if self.points else self.prepare_s

    def seconds_to(self, top1: float) -> float | None:
        """Seconds until the end of the first epoch with at least that validation top-1; None: there is none."""
        return next((point.seconds for point in self.points if point.top1 >= top1), None)


def curve_of(facts: dict[str, Any]) -> Curve:
    """The curve that `dataclasses.asdict` wrote."""
    return Curve(**{**facts, "points": [Point(**point) for point in facts["points"]]})


@dataclass(frozen=True)
class Duel:
    """One of ours against a peer: seconds until each has the peer's final validation top-1.

    Attributes:
        ours, peer: titles.
        top1: percent that the peer ends with.
        ours_s: None: never reached.
        peer_s: of the peer's first epoch that has it.
    """

    ours: str
    peer: str
    top1: float
    ours_s: float | None
    peer_s: float

    @property
    def ratio(self) -> float | None:
        """How many times sooner ours is there."""
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
