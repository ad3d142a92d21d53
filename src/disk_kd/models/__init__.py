"""CIFAR-scale networks registered with timm, and files of weights read without running code in them.

Importing this package registers the ``cifar_*`` names, so `timm.create_model` knows them.
"""

from __future__ import annotations

from disk_kd.models import cifar_resnet, mobilenetv2, shufflenetv2, vgg, wide_resnet
from disk_kd.models.factory import (
    check_logits,
    check_model_name,
    create_model,
    multiply_adds,
    set_normalisation,
    shipped_weights,
)
from disk_kd.models.resnet import ResNet
from disk_kd.models.staged import StagedNet
from disk_kd.models.weights import convert, load_state_dict, load_weights, read_metadata, save_state_dict

__all__ = [
    "ResNet",
    "StagedNet",
    "check_logits",
    "check_model_name",
    "cifar_resnet",
    "convert",
    "create_model",
    "load_state_dict",
    "load_weights",
    "mobilenetv2",
    "multiply_adds",
    "read_metadata",
    "save_state_dict",
    "set_normalisation",
    "shipped_weights",
    "shufflenetv2",
    "vgg",
    "wide_resnet",
]
