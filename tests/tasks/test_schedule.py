from __future__ import annotations

import pytest
import torch

from disk_kd.errors import ConfigError
from disk_kd.tasks import Cosine
from disk_kd.tasks.schedule import scheduled

# Measured from the method's released implementation, float64.
RELEASED_BUDGET = {
    0: 0.6,
    4: 0.5809016994374947,
    8: 0.5309016994374948,
    12: 0.46909830056250523,
    16: 0.4190983005625053,
    20: 0.6,
    36: 0.4190983005625053,
}
RELEASED_PRICE = {(1.0, 5.0, 50, 60): 1.381966011250105, (0.1, 0.5, 30, 17): 0.3415823381635519}


def time(epochs: float) -> torch.Tensor:
    return torch.tensor(epochs, dtype=torch.float64)


@pytest.mark.parametrize(("epochs", "value"), RELEASED_BUDGET.items())
def test_budget_follows_the_release(epochs: int, value: float) -> None:
    assert Cosine(0.6, 0.4, 20).at(time(epochs)).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("curve", "value"), RELEASED_PRICE.items())
def test_price_follows_the_release(curve: tuple[float, float, int, int], value: float) -> None:
    assert Cosine(*curve[:3]).at(time(curve[3])).item() == pytest.approx(value, abs=1e-12)


def test_a_restart_comes_back_to_the_start_every_time() -> None:
    assert [Cosine(0.6, 0.4, 20).at(time(20 * n)).item() for n in range(12)] == [0.6] * 12


def test_a_start_that_decays_falls_below_the_end_and_turns_the_curve_over() -> None:
    curve = Cosine(0.6, 0.4, 20, start_decay=0.9)
    starts = [0.6, 0.54, 0.486, 0.4374, 0.39366, 0.354294]
    assert [curve.at(time(20 * n)).item() for n in range(6)] == pytest.approx(starts, abs=1e-12)
    assert [curve.at(time(20 * n + 10)).item() for n in range(6)] == pytest.approx([(s + 0.4) / 2 for s in starts])
    assert curve.at(time(79)) > 0.4 > curve.at(time(99)) > curve.at(time(90))


@pytest.mark.parametrize("decay", [0, 1.1, -0.9, float("nan")])
def test_a_decay_lies_above_zero_and_up_to_one(decay: float) -> None:
    with pytest.raises(ConfigError, match=f"start_decay must be above 0 and at most 1, not {decay}"):
        Cosine(1, 0, 5, decay)


def test_a_number_is_constant() -> None:
    assert scheduled(0.25, time(7)).item() == 0.25


@pytest.mark.parametrize("period", [0, -1, float("nan")])
def test_a_period_must_be_positive(period: float) -> None:
    with pytest.raises(ConfigError, match="period must be positive"):
        Cosine(1, 0, period)
