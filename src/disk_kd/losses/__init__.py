"""Losses: tensors in, a scalar out; one published loss a file."""

from __future__ import annotations

from disk_kd.losses.attention_transfer import AttentionTransferLoss, attention_transfer_loss
from disk_kd.losses.budget_penalty import BudgetPenalty, budget_penalty
from disk_kd.losses.crd import ContrastiveLoss
from disk_kd.losses.dist import DISTLoss, dist_loss
from disk_kd.losses.dkd import DKDLoss, dkd_loss
from disk_kd.losses.fitnet import FitNetLoss, fitnet_loss
from disk_kd.losses.jensen_shannon import JensenShannonLoss, jensen_shannon_loss
from disk_kd.losses.kd import KDLoss, kd_loss
from disk_kd.losses.nkd import NKDLoss, nkd_loss
from disk_kd.losses.review_kd import ReviewKD, hierarchical_context_loss
from disk_kd.losses.rkd import RKDLoss, rkd_loss
from disk_kd.losses.scaffolded_kl import ScaffoldedKL, scaffolded_kl
from disk_kd.losses.scaffolded_nll import ScaffoldedNLL, scaffolded_nll
from disk_kd.losses.similarity_preserving import SimilarityPreservingLoss, similarity_preserving_loss
from disk_kd.losses.simkd import simkd_loss
from disk_kd.losses.standardise import standardise
from disk_kd.losses.vid import VariationalInformation, vid_loss

__all__ = [
    "AttentionTransferLoss",
    "BudgetPenalty",
    "ContrastiveLoss",
    "DISTLoss",
    "DKDLoss",
    "FitNetLoss",
    "JensenShannonLoss",
    "KDLoss",
    "NKDLoss",
    "RKDLoss",
    "ReviewKD",
    "ScaffoldedKL",
    "ScaffoldedNLL",
    "SimilarityPreservingLoss",
    "VariationalInformation",
    "attention_transfer_loss",
    "budget_penalty",
    "dist_loss",
    "dkd_loss",
    "fitnet_loss",
    "hierarchical_context_loss",
    "jensen_shannon_loss",
    "kd_loss",
    "nkd_loss",
    "rkd_loss",
    "scaffolded_kl",
    "scaffolded_nll",
    "similarity_preserving_loss",
    "simkd_loss",
    "standardise",
    "vid_loss",
]
