from __future__ import annotations

import pytest

from disk_kd.errors import ConfigError
from disk_kd.tasks import Phase, plan_epochs


def names(phases: tuple[Phase, ...], epochs: int) -> str:
    return "".join(phase.name for phase in plan_epochs(phases, epochs))


STUDENT, HELPER = Phase("s", epochs=3), Phase("h", "helper", False, epochs=3, warmup_epochs=2)


def test_one_phase_is_as_many_passes() -> None:
    assert names((Phase("s"),), 4) == "ssss"


def test_a_round_that_the_budget_cuts_short_ends_with_a_student_pass() -> None:
    assert names((STUDENT, HELPER), 7) == "hh" + "sss" + "hhh" + "sss" + "hhh" + "s"


def test_whole_rounds_are_done_to_their_end() -> None:
    assert names((STUDENT, HELPER), 3) == "hh" + "ssshhh"
    assert names((STUDENT, HELPER), 6) == "hh" + "ssshhh" * 2


def test_a_helper_that_comes_first_in_the_round() -> None:
    assert names((Phase("h", "helper", False), Phase("s")), 2) == "hshs"
    assert names((Phase("h", "helper", False), Phase("s", epochs=2)), 3) == "hsshs"


def test_warm_up_passes_of_the_student_count() -> None:
    assert names((Phase("s", warmup_epochs=2),), 3) == "sss"
    assert names((Phase("s", warmup_epochs=2),), 1) == "s"


def test_a_method_that_never_trains_the_student_is_refused() -> None:
    with pytest.raises(ConfigError, match="no phase with epochs that train the student"):
        plan_epochs((HELPER, Phase("s", epochs=0)), 3)


def test_less_than_no_passes_are_refused() -> None:
    with pytest.raises(ConfigError, match="epochs of the phase h must be at least 0, not -3"):
        plan_epochs((STUDENT, Phase("h", "helper", False, -3)), 3)
    with pytest.raises(ConfigError, match="warmup_epochs of the phase h must be at least 0, not -1"):
        plan_epochs((STUDENT, Phase("h", "helper", False, 1, -1)), 3)
