"""Feature methods: losses between features of student and teacher that are added to any method. One a file."""

from disk_kd.hints.attention_transfer import AttentionTransferHint
from disk_kd.hints.base import Context, Hint, StudentAndHint, StudentWrapper
from disk_kd.hints.crd import CRDHint
from disk_kd.hints.fitnet import FitNetHint
from disk_kd.hints.review_kd import ReviewKDHint
from disk_kd.hints.rkd import RKDHint
from disk_kd.hints.sdd import SDDHint
from disk_kd.hints.similarity_preserving import SimilarityPreservingHint
from disk_kd.hints.simkd import SimKDHint
from disk_kd.hints.vid import VIDHint

HINTS: dict[str, type[Hint]] = {
    "fitnet": FitNetHint,
    "at": AttentionTransferHint,
    "sp": SimilarityPreservingHint,
    "rkd": RKDHint,
    "vid": VIDHint,
    "crd": CRDHint,
    "reviewkd": ReviewKDHint,
    "simkd": SimKDHint,
    "sdd": SDDHint,
}
"""The feature methods by the name that recipes and the command line use."""

__all__ = [
    "HINTS",
    "AttentionTransferHint",
    "CRDHint",
    "Context",
    "FitNetHint",
    "Hint",
    "RKDHint",
    "ReviewKDHint",
    "SDDHint",
    "SimKDHint",
    "SimilarityPreservingHint",
    "StudentAndHint",
    "StudentWrapper",
    "VIDHint",
]
