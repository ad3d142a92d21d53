"""What the tests of the benchmark's models share: the released facts and outputs, and those of our models."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from test_resnet import expected_tensors, images, write_deterministic_weights

from disk_kd.models import multiply_adds

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "benchmark_models.json").read_text())["models"]
WITH_OUTPUTS = [name for name, golden in GOLDEN.items() if "logits_sum" in golden]

OUTPUTS = ("logits_first6", "logits_sum", "pooled_sum", "map_sum")


def names(prefix):
    """All the models of a family with released facts, and those of them with released outputs."""
    return [[name for name in group if name.startswith(prefix)] for group in (GOLDEN, WITH_OUTPUTS)]


def released_facts(name):
    golden = {key: value for key, value in GOLDEN[name].items() if key not in OUTPUTS}
    return golden | {"layers": list(expected_tensors(golden["layers"]))}


def facts(name):
    """Parameters, cost, keys and shapes of a model; the map that the release's helpers read is the last one."""
    model = timm.create_model(name, num_classes=100).eval()
    with torch.no_grad():
        features = model.forward_features(torch.zeros(2, 3, 32, 32))
        pooled = model.forward_head(features, pre_logits=True)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        # The release counts the additions of the classifier's bias too.
        "macs_M": round((multiply_adds(model, (3, 32, 32)) + model.num_classes) / 1e6, 3),
        "pooled_shape": list(pooled.shape),
        "map_shape": list(features.shape),
        "layers": [(key, list(value.shape)) for key, value in model.state_dict().items()],
    }


def released_outputs(name):
    first6, *sums = (GOLDEN[name][key] for key in OUTPUTS)
    return [*first6, *sums]


def outputs(name):
    """The numbers of `OUTPUTS` for the deterministic weights and images, in float64."""
    model = timm.create_model(name, num_classes=100).double().eval()
    write_deterministic_weights(model)
    with torch.no_grad():
        features = model.forward_features(images())
        pooled = model.forward_head(features, pre_logits=True)
        logits = model(images())
    return [*logits[0, :6].tolist(), *(tensor.sum().item() for tensor in (logits, pooled, features))]
