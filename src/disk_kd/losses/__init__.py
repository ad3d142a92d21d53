"""Losses: tensors in, a scalar out; one published loss a file."""

from __future__ import annotations

from disk_kd.losses.abkd import ABKDLoss, abkd_loss
from disk_kd.losses.attention_transfer import AttentionTransferLoss, attention_transfer_loss
from disk_kd.losses.budget_penalty import BudgetPenalty, budget_penalty
from disk_kd.losses.class_costs import cka_relations, class_costs, classifier_relations
from disk_kd.losses.crd import ContrastiveLoss
from disk_kd.losses.dist import DISTLoss, dist_loss
from disk_kd.losses.dkd import DKDLoss, dkd_loss
from disk_kd.losses.fitnet import FitNetLoss, fitnet_loss
from disk_kd.losses.gce import GCELoss, gce_loss
from disk_kd.losses.jensen_shannon import JensenShannonLoss, jensen_shannon_loss
from disk_kd.losses.kd import KDLoss, kd_loss
from disk_kd.losses.mlkd import MLKDLoss, mlkd_loss
from disk_kd.losses.nkd import NKDLoss, nkd_loss
from disk_kd.losses.review_kd import ReviewKD, hierarchical_context_loss
from disk_kd.losses.rkd import RKDLoss, rkd_loss
from disk_kd.losses.rld import RLDLoss, rld_loss
from disk_kd.losses.scaffolded_kl import ScaffoldedKL, scaffolded_kl
from disk_kd.losses.scaffolded_nll import ScaffoldedNLL, scaffolded_nll
from disk_kd.losses.sdd import SDDLoss, sdd_loss
from disk_kd.losses.similarity_preserving import SimilarityPreservingLoss, similarity_preserving_loss
from disk_kd.losses.simkd import simkd_loss
from disk_kd.losses.skd import SKDLoss, skd_loss
from disk_kd.losses.standardise import standardise
from disk_kd.losses.ttm import TTMLoss, ttm_loss
from disk_kd.losses.vid import VariationalInformation, vid_loss
from disk_kd.losses.wkd import WKDLoss, wkd_loss
from disk_kd.losses.wttm import WTTMLoss, wttm_loss

__all__ = [
    "ABKDLoss",
    "AttentionTransferLoss",
    "BudgetPenalty",
    "ContrastiveLoss",
    "DISTLoss",
    "DKDLoss",
    "FitNetLoss",
    "GCELoss",
    "JensenShannonLoss",
    "KDLoss",
    "MLKDLoss",
    "NKDLoss",
    "RKDLoss",
    "RLDLoss",
    "ReviewKD",
    "SDDLoss",
    "SKDLoss",
    "ScaffoldedKL",
    "ScaffoldedNLL",
    "SimilarityPreservingLoss",
    "TTMLoss",
    "VariationalInformation",
    "WKDLoss",
    "WTTMLoss",
    "abkd_loss",
    "attention_transfer_loss",
    "budget_penalty",
    "cka_relations",
    "class_costs",
    "classifier_relations",
    "dist_loss",
    "dkd_loss",
    "fitnet_loss",
    "gce_loss",
    "hierarchical_context_loss",
    "jensen_shannon_loss",
    "kd_loss",
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
