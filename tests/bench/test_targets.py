from __future__ import annotations

from dataclasses import replace

import pytest

from disk_kd.bench import BenchSettings
from disk_kd.bench.measure import Rate
from disk_kd.bench.peak import Peak
from disk_kd.bench.targets import GIB, judge

SPEED = {
    ("bound", None): 1000.0,
    ("ceiling", None): 1500.0,
    ("ce", None): 1300.0,
    ("helper", None): 60_000.0,
    ("disk_stored", "cifar_resnet10_l"): 1250.0,
    ("disk_online", "cifar_resnet10_l"): 400.0,
    ("teacher", "cifar_resnet10_l"): 650.0,
    ("timm", "cifar_resnet10_l"): 240.0,
}
RATES = [Rate(key, key, teacher, (value,)) for (key, teacher), value in SPEED.items()]
PEAK = Peak("disk_stored", "cifar_resnet10_l", GIB, None)


def judged(settings: BenchSettings | None = None, on_cpu: bool = True) -> dict[str, tuple[float, bool]]:
    found = judge(RATES, [PEAK], settings or BenchSettings(), on_cpu)
    return {target.what: (target.value, target.met) for target in found}


def test_values_and_verdicts() -> None:
    found = judged()
    assert found == {
        "CE epoch / the bound": (pytest.approx(1.3), True),
        "DiSK stored / CE epoch (cifar_resnet10_l)": (pytest.approx(1250 / 1300), True),
        # 1/1300 + 1/650 = 3/1300 seconds an image
        "DiSK online / harmonic bound of CE epoch and teacher (cifar_resnet10_l)": (pytest.approx(1200 / 1300), False),
        "DiSK stored / timm's KD task in a DataLoader (cifar_resnet10_l)": (pytest.approx(1250 / 240), True),
        "exact helper / student step as we run it, time": (pytest.approx(0.025), True),
        "peak host memory, CIFAR-100's size, DiSK stored (cifar_resnet10_l)": (1.0, True),
    }


def test_a_limit_itself_is_met() -> None:
    slow = [replace(rate, images_per_s=(1250.0,)) if rate.key == "ce" else rate for rate in RATES]
    (first, *_) = judge(slow, [], BenchSettings(), on_cpu=True)
    assert (first.value, first.met) == (1.25, True)


def test_what_is_for_a_cpu_does_not_apply_elsewhere() -> None:
    found = " ".join(judged(on_cpu=False))
    assert "the bound" not in found
    assert "timm" not in found


def test_the_timm_target_is_for_its_student_alone() -> None:
    assert not any("timm" in what for what in judged(BenchSettings(student="cifar_resnet10_xxs")))


def test_the_memory_target_is_for_cifar_100s_size() -> None:
    assert not any("memory" in what for what in judged(BenchSettings(memory_samples=1000)))


def test_too_much_memory_is_not_met() -> None:
    large = replace(PEAK, host_bytes=2 * GIB)
    verdict = judge(RATES, [large], BenchSettings(), on_cpu=True)[-1]
    assert (verdict.value, verdict.met, verdict.unit) == (2.0, False, " GiB")
