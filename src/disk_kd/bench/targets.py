"""The speed targets of the project, and whether a measurement meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disk_kd.bench.measure import Rate
from disk_kd.bench.peak import Peak
from disk_kd.bench.settings import BenchSettings

GIB = 2**30
CIFAR100 = {"memory_samples": 50_000, "image_size": 32, "classes": 100}
TIMES_TIMM = {"cifar_resnet10_l": 5.0, "cifar_resnet18": 25.0}
"""Speed relative to timm's task in a DataLoader, with cifar_resnet10_s as student, on a CPU."""


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Attributes:
        what: what is measured.
        value: measured value.
        limit: target.
        at_least: whether the value must be at least, rather than at most, the limit.
        unit: unit of both.
    """

    what: str
    value: float
    limit: float
    at_least: bool = True
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def judge(rates: Sequence[Rate], peaks: Sequence[Peak], settings: BenchSettings, on_cpu: bool) -> list[Target]:
    """The targets that apply to what was measured."""
    speed = {(rate.key, rate.teacher): rate.median for rate in rates}
    ce, bound, ceiling, helper = (speed[key, None] for key in ("ce", "bound", "ceiling", "helper"))
    targets = []
    if on_cpu:
        targets.append(Target("CE epoch / the bound", ce / bound, 1.25))
    for teacher in settings.teachers:
        stored, online = speed["disk_stored", teacher], speed["disk_online", teacher]
        both = 1 / (1 / ce + 1 / speed["teacher", teacher])
        targets.append(Target(f"DiSK stored / CE epoch ({teacher})", stored / ce, 0.95))
        what = f"DiSK online / harmonic bound of CE epoch and teacher ({teacher})"
        targets.append(Target(what, online / both, 0.95))
        timm = speed.get(("timm", teacher))
        if timm and on_cpu and settings.student == "cifar_resnet10_s" and teacher in TIMES_TIMM:
            what = f"DiSK stored / timm's KD task in a DataLoader ({teacher})"
            targets.append(Target(what, stored / timm, TIMES_TIMM[teacher]))
    targets.append(Target("exact helper / student step as we run it, time", ceiling / helper, 0.03, at_least=False))
    if all(getattr(settings, name) == value for name, value in CIFAR100.items()):
        for peak in peaks:
            if peak.key == "disk_stored":
                what = f"peak host memory, CIFAR-100's size, DiSK stored ({peak.teacher})"
                targets.append(Target(what, peak.host_bytes / GIB, 1.5, at_least=False, unit=" GiB"))
    return targets
