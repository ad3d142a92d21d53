from __future__ import annotations

from typing import Any

import pytest

from disk_kd.bench import BenchSettings
from disk_kd.bench.settings import check_models
from disk_kd.errors import ConfigError, ModelError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"samples": 100}, r"samples must be at least 200 \(the batch size\), not 100"),
        ({"memory_samples": 100}, r"memory_samples must be at least 200 \(the batch size\), not 100"),
        ({"repetitions": 0}, "repetitions must be at least 1"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"sweep_samples": [100, 1000]}, "sweep_samples must be at least 200"),
        ({"sweep_classes": []}, "sweep_classes must name at least one value"),
        ({"sweep_batch_sizes": [25, 25]}, r"none twice, not \[25, 25\]"),
        ({"teachers": []}, "teachers must name at least one value"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchSettings(**changes)


def test_what_is_not_measured_is_not_checked() -> None:
    BenchSettings(samples=300, memory_samples=100, sweep_samples=[1], memory=False, sweeps=False)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ModelError, match="cifar_resnet10_q"):
        check_models(BenchSettings(teachers=["cifar_resnet10_q"]))


def test_a_model_for_other_images_is_refused() -> None:
    with pytest.raises(ModelError, match="does not take an image"):
        check_models(BenchSettings(teachers=["vit_tiny_patch16_224"]))
