"""Methods of distillation: what runs forward, which loss, what trains. One method a file."""

from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.cross_entropy import CETask
from disk_kd.tasks.disk import DiSKTask
from disk_kd.tasks.disk_settings import VARIANTS, DiSKSettings
from disk_kd.tasks.dist import DISTTask
from disk_kd.tasks.dkd import DKDTask
from disk_kd.tasks.jensen_shannon import JensenShannonTask
from disk_kd.tasks.kd import KDTask
from disk_kd.tasks.nkd import NKDTask
from disk_kd.tasks.phase import Phase, plan_passes
from disk_kd.tasks.schedule import Cosine
from disk_kd.tasks.timm_tasks import TimmFeatureTask, TimmLogitTask, TimmTokenTask

METHODS: dict[str, type[StudentTask]] = {
    "ce": CETask,
    "kd": KDTask,
    "dkd": DKDTask,
    "nkd": NKDTask,
    "dist": DISTTask,
    "jsd": JensenShannonTask,
    "disk": DiSKTask,
    "timm-logits": TimmLogitTask,
    "timm-features": TimmFeatureTask,
    "timm-token": TimmTokenTask,
}
"""The methods by the name that recipes and the command line use."""

__all__ = [
    "METHODS",
    "VARIANTS",
    "CETask",
    "Cosine",
    "DISTTask",
    "DKDTask",
    "DiSKSettings",
    "DiSKTask",
    "JensenShannonTask",
    "KDTask",
    "NKDTask",
    "Phase",
    "StudentTask",
    "TimmFeatureTask",
    "TimmLogitTask",
    "TimmTokenTask",
    "plan_passes",
]
