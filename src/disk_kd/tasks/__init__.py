"""Methods of distillation: what runs forward, which loss, what trains. One method a file."""

from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.cross_entropy import CETask
from disk_kd.tasks.disk import DiSKTask
from disk_kd.tasks.disk_settings import VARIANTS, DiSKSettings
from disk_kd.tasks.kd import KDTask
from disk_kd.tasks.phase import Phase, plan_passes
from disk_kd.tasks.schedule import Cosine

METHODS: dict[str, type[StudentTask]] = {"ce": CETask, "kd": KDTask, "disk": DiSKTask}
"""The methods by the name that recipes and the command line use."""

__all__ = [
    "METHODS",
    "VARIANTS",
    "CETask",
    "Cosine",
    "DiSKSettings",
    "DiSKTask",
    "KDTask",
    "Phase",
    "StudentTask",
    "plan_passes",
]
