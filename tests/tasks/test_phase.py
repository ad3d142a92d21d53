from __future__ import annotations

import pytest

from disk_kd.errors import ConfigError
from disk_kd.tasks import Phase, plan_passes


def names(phases: tuple[Phase, ...], passes: int) -> str:
    return "".join(phase.name for phase in plan_passes(phases, passes))


STUDENT, HELPER = Phase("s", passes=3), Phase("h", "helper", False, passes=3, warmup_passes=2)


def test_one_phase_is_as_many_passes() -> None:
    assert names((Phase("s"),), 4) == "ssss"


def test_alternation_counts_student_passes_and_ends_with_one() -> None:
    assert names((STUDENT, HELPER), 7) == "hh" + "sss" + "hhh" + "sss" + "hhh" + "s"


def test_a_budget_of_whole_rounds_trains_no_helper_in_vain() -> None:
    assert names((STUDENT, HELPER), 3) == "hhsss"


def test_a_helper_that_comes_first_in_the_round() -> None:
    assert names((Phase("h", "helper", False), Phase("s")), 2) == "hshs"


def test_a_method_that_never_trains_the_student_is_refused() -> None:
    with pytest.raises(ConfigError, match="no phase with passes that train the student"):
        plan_passes((HELPER, Phase("s", passes=0)), 3)
