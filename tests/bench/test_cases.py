from __future__ import annotations

import pytest
import torch

from disk_kd.bench.cases import ALONE, TAUGHT, ce, epochs, make_case, our_cases
from disk_kd.bench.workbench import Workbench
from disk_kd.tasks import CETask, DiSKTask

TEACHER = "cifar_resnet10_xxs"


@pytest.mark.parametrize("key", [*ALONE, *TAUGHT])
def test_a_case_counts_its_images(bench: Workbench, key: str) -> None:
    case = make_case(bench, key, TEACHER)
    images = 72 if key == "store" else 30  # two views of all 36, or three whole batches of 10
    assert case.run() == images
    assert case.run() == images
    assert case.teacher == (None if key in ALONE else TEACHER)


def test_every_teacher_has_its_cases(bench: Workbench) -> None:
    keys = [(case.key, case.teacher) for case in our_cases(bench)]
    assert keys == [(key, None) for key in ALONE if key != "bound"] + [(key, TEACHER) for key in TAUGHT]


def test_a_pass_trains_and_cut_short_counts_what_it_did(bench: Workbench) -> None:
    task = CETask(bench.student())
    before = [p.clone() for p in task.student.parameters()]
    assert epochs(bench, task, steps=2)() == 20
    assert any(not torch.equal(a, b) for a, b in zip(before, task.student.parameters(), strict=True))
    assert ce(bench, steps=1)() == 10


def test_a_helper_network_is_trained_too_and_its_pass_does_not_count(bench: Workbench) -> None:
    task = DiSKTask(bench.student(), bench.teacher(TEACHER), helper="teacher-map")
    assert task.helper is not None
    before = [p.clone() for p in task.helper.parameters()]
    assert epochs(bench, task)() == 30
    assert any(not torch.equal(a, b) for a, b in zip(before, task.helper.parameters(), strict=True))


def test_the_bound_is_contiguous_and_moves_nothing(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    student = bench.student(channels_last=False)
    monkeypatch.setattr(bench, "student", lambda channels_last: student)
    before = [p.clone() for p in student.parameters()]
    seen: list[torch.Tensor] = []
    student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    make_case(bench, "bound", TEACHER).run()
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert len(seen) == 3
    assert all(x.is_contiguous() and x is seen[0] for x in seen)
