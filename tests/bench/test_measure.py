from __future__ import annotations

import pytest
import torch

from disk_kd.bench.measure import Case, Rate, time_cases


def test_cases_are_interleaved_and_the_first_repetition_is_not_counted() -> None:
    now, order, done = [0.0], [], []

    def case(key: str, *seconds: float) -> Case:
        left = list(seconds)

        def run() -> int:
            order.append(key)
            now[0] += left.pop(0)
            return 100

        return Case(key, key.upper(), run, teacher="t", x=7)

    cases = [case("a", 1000.0, 1.0, 2.0, 4.0), case("b", 1000.0, 10.0, 5.0, 20.0)]
    rates = time_cases(cases, 3, torch.device("cpu"), lambda *at: done.append(at), clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert done == [(n, 8) for n in range(1, 9)]
    assert rates == [Rate("a", "A", "t", (100.0, 50.0, 25.0), 7), Rate("b", "B", "t", (10.0, 20.0, 5.0), 7)]


def test_the_median_counts() -> None:
    rate = Rate("a", "A", None, (1.0, 9.0, 2.0))
    assert (rate.median, rate.low, rate.high) == (2.0, 1.0, 9.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_device_is_waited_for() -> None:
    device = torch.device("cuda")
    x = torch.randn(8192, 8192, device=device)
    busy = torch.cuda.Event()

    def run() -> int:
        for _ in range(20):
            x @ x
        busy.record()
        return 1

    time_cases([Case("a", "A", run)], 1, device)
    assert busy.query()
