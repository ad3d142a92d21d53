"""Losses: functions from tensors to a scalar. Each file holds one published loss."""

from __future__ import annotations

from disk_kd.losses.abkd import abkd_loss
from disk_kd.losses.attention_transfer import attention_transfer_loss
from disk_kd.losses.budget_penalty import budget_penalty
from disk_kd.losses.class_costs import cka_relations, class_costs, classifier_relations
from disk_kd.losses.class_weights import class_weights, logit_shift
from disk_kd.losses.crd import ContrastiveLoss
from disk_kd.losses.dist import dist_loss
from disk_kd.losses.dkd import dkd_loss
from disk_kd.losses.feature_kd import feature_kd_loss
from disk_kd.losses.fitnet import fitnet_loss
from disk_kd.losses.gce import gce_loss
from disk_kd.losses.jensen_shannon import jensen_shannon_loss
from disk_kd.losses.kd import kd_loss
from disk_kd.losses.mlkd import mlkd_loss
from disk_kd.losses.nkd import nkd_loss
from disk_kd.losses.review_kd import ReviewKD, hierarchical_context_loss
from disk_kd.losses.rkd import rkd_loss
from disk_kd.losses.rld import rld_loss
from disk_kd.losses.scaffolded_kl import scaffolded_kl
from disk_kd.losses.scaffolded_nll import scaffolded_nll
from disk_kd.losses.sdd import sdd_loss
from disk_kd.losses.similarity_preserving import similarity_preserving_loss
from disk_kd.losses.simkd import simkd_loss
from disk_kd.losses.skd import skd_loss
from disk_kd.losses.standardise import standardise
from disk_kd.losses.ttm import ttm_loss
from disk_kd.losses.vid import VariationalInformation, vid_loss
from disk_kd.losses.wkd import wkd_loss
from disk_kd.losses.wttm import wttm_loss

__all__ = [
    "ContrastiveLoss",
    "ReviewKD",
    "VariationalInformation",
    "abkd_loss",
    "attention_transfer_loss",
    "budget_penalty",
    "cka_relations",
    "class_costs",
    "class_weights",
    "classifier_relations",
    "dist_loss",
    "dkd_loss",
    "feature_kd_loss",
    "fitnet_loss",
    "gce_loss",
    "hierarchical_context_loss",
    "jensen_shannon_loss",
    "kd_loss",
    "logit_shift",
    "mlkd_loss",
    "nkd_loss",
    "rkd_loss",
    "rld_loss",
    "scaffolded_kl",
    "scaffolded_nll",
    "sdd_loss",
    "similarity_preserving_loss",
    "simkd_loss",
    "skd_loss",
    "standardise",
    "ttm_loss",
    "vid_loss",
    "wkd_loss",
    "wttm_loss",
]
