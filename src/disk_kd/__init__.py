"""disk-kd: knowledge distillation for image classifiers.

    task = DiSKTask(student, teacher)
    for x, y in loader:
        task(x, y)["loss"].backward(); optimizer.step(); optimizer.zero_grad()

    run = distill("digits-demo/disk")       # the same as `disk-kd distill`
    student = run.student()

Importing the package registers its models with timm under `cifar_*`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from disk_kd import helpers, losses, models
from disk_kd.tasks import CETask, Cosine, DiSKTask, KDTask
from disk_kd.teacher import Teacher

if TYPE_CHECKING:
    from disk_kd.api import Run, advise, compare, distill, evaluate, load_student, predict, train, tune

__version__ = version("disk-kd")

_RUNS = ("Run", "advise", "compare", "distill", "evaluate", "load_student", "predict", "train", "tune")

__all__ = [
    "CETask",
    "Cosine",
    "DiSKTask",
    "KDTask",
    "Run",
    "Teacher",
    "advise",
    "compare",
    "distill",
    "evaluate",
    "helpers",
    "load_student",
    "losses",
    "models",
    "predict",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import the modules for runs on first use. A training loop of your own does not need them."""
    if name not in _RUNS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from disk_kd import api

    return getattr(api, name)
