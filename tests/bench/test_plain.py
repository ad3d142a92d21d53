from __future__ import annotations

from dataclasses import replace

import pytest

from disk_kd.bench import BenchSettings
from disk_kd.bench.plain import PlainProcess
from disk_kd.errors import RunError


@pytest.mark.slow
def test_a_process_runs_the_case_that_is_asked_for(settings: BenchSettings) -> None:
    with PlainProcess(settings, "peers") as peers:
        cases = {case.key: case for case in peers.cases()}
        assert {"plain_ce", "timm", "timm_ours"} <= cases.keys()
        assert cases["timm"].teacher == settings.teachers[0]
        assert [cases[key].run() for key in ("timm", "plain_ce", "timm")] == [30, 30, 30]
    assert not peers._process.is_alive()


@pytest.mark.slow
def test_a_process_that_dies_is_one_line(settings: BenchSettings, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="a process of the benchmark died"):
        PlainProcess(replace(settings, student="no_such_model"), "bound")
    assert "no_such_model" in capfd.readouterr().err
