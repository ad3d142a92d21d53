"""Methods of distillation: what runs forward, which loss, what trains. One method a file."""

from disk_kd.hints import StudentWrapper
from disk_kd.tasks.abkd import ABKDTask
from disk_kd.tasks.base import StudentTask
from disk_kd.tasks.cross_entropy import CETask
from disk_kd.tasks.disk import DiSKTask
from disk_kd.tasks.disk_help import default_help
from disk_kd.tasks.disk_settings import VARIANTS, DiSKSettings
from disk_kd.tasks.dist import DISTTask
from disk_kd.tasks.dkd import DKDTask
from disk_kd.tasks.example_help import ExampleHelp, HelpsExamples
from disk_kd.tasks.feature import FeatureTask
from disk_kd.tasks.gce import GCETask
from disk_kd.tasks.jensen_shannon import JensenShannonTask
from disk_kd.tasks.kd import KDTask
from disk_kd.tasks.mlkd import MLKDTask
from disk_kd.tasks.nkd import NKDTask
from disk_kd.tasks.phase import Phase, plan_epochs
from disk_kd.tasks.quantity import Quantity
from disk_kd.tasks.rld import RLDTask
from disk_kd.tasks.schedule import Cosine
from disk_kd.tasks.self_training import SelfTrainingTask
from disk_kd.tasks.skd import SKDTask
from disk_kd.tasks.timm_tasks import TimmFeatureTask, TimmLogitTask, TimmTokenTask
from disk_kd.tasks.ttm import TTMTask
from disk_kd.tasks.wkd import WKDTask
from disk_kd.tasks.wttm import WTTMTask

METHODS: dict[str, type[StudentTask]] = {
    "ce": CETask,
    "kd": KDTask,
    "dkd": DKDTask,
    "nkd": NKDTask,
    "dist": DISTTask,
    "mlkd": MLKDTask,
    "skd": SKDTask,
    "ttm": TTMTask,
    "wttm": WTTMTask,
    "rld": RLDTask,
    "wkd": WKDTask,
    "abkd": ABKDTask,
    "gce": GCETask,
    "jsd": JensenShannonTask,
    "disk": DiSKTask,
    "self-training": SelfTrainingTask,
    "feature": FeatureTask,
    "timm-logits": TimmLogitTask,
    "timm-features": TimmFeatureTask,
    "timm-token": TimmTokenTask,
}
"""The methods by the name that recipes and the command line use."""

__all__ = [
    "METHODS",
    "VARIANTS",
    "ABKDTask",
    "CETask",
    "Cosine",
    "DISTTask",
    "DKDTask",
    "DiSKSettings",
    "DiSKTask",
    "ExampleHelp",
    "FeatureTask",
    "GCETask",
    "HelpsExamples",
    "JensenShannonTask",
    "KDTask",
    "MLKDTask",
    "NKDTask",
    "Phase",
    "Quantity",
    "RLDTask",
    "SKDTask",
    "SelfTrainingTask",
    "StudentTask",
    "StudentWrapper",
    "TTMTask",
    "TimmFeatureTask",
    "TimmLogitTask",
    "TimmTokenTask",
    "WKDTask",
    "WTTMTask",
    "default_help",
    "plan_epochs",
]
