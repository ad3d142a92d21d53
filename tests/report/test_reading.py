from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scipy.stats import ttest_ind, ttest_rel

from disk_kd.errors import RunError
from disk_kd.report.outputs import Outputs
from disk_kd.report.reading import Group, Run, find_runs, group_runs
from disk_kd.report.subject import Subject
from disk_kd.report.training import budget
from disk_kd.report.verdict import Gap, Gaps, ranked


def test_runs_that_differ_in_their_seed_alone_are_one_group(runs: Path) -> None:
    groups = group_runs(find_runs([runs]))
    names = {group.name: [run.seed for run in group.runs] for group in groups}
    assert names == {"ce": [0], "disk": [0, 1], "kd": [0], "noisy": [0], "teacher": [0]}


def test_files_of_another_version_do_not_divide_a_group(runs: Path) -> None:
    seeds = [Run.read(runs / "disk" / f"seed{seed}") for seed in (0, 1)]
    text = seeds[1].text
    assert "  support_mass: 1.0\n" in text
    text = text.replace("  support_mass: 1.0\n", "").replace("log_every: 2\n", "log_every: 5\n")
    older = Run(seeds[1].folder, text, seeds[1].summary, seeds[1].lines)
    assert older.written_key != seeds[0].written_key
    assert [len(group.runs) for group in group_runs([seeds[0], older])] == [2]


def test_groups_of_one_folder_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "teacher", tmp_path / "other" / "ce")
    both = [Run.read(runs / "ce" / "seed0"), Run.read(tmp_path / "other" / "ce")]
    assert [group.name for group in group_runs(both)] == [f"{runs.name}/ce", "other/ce"]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        Run.read(tmp_path)
    with pytest.raises(RunError, match="and holds none"):
        find_runs([tmp_path])


def test_training_lines_know_their_student_passes(runs: Path) -> None:
    lines = Run.read(runs / "disk" / "seed0").student_lines
    assert [line["passes"] for line in lines[:6]] == pytest.approx([0.4, 0.8, 1.0, 1.2, 1.6, 2.0])


def test_the_shipped_run_is_the_best_on_validation(runs: Path) -> None:
    (group,) = group_runs(find_runs([runs / "disk"]))
    tops = {run.seed: (run.summary or {})["validation"]["top1"] for run in group.runs}
    assert tops[group.chosen.seed] == max(tops.values())


def with_tops(runs: Path, name: str, tops: list[float]) -> Group:
    """A group of as many seeds, with these accuracies in the place of those that a run had."""
    run = Run.read(runs / name / "seed0")
    seeds = []
    for seed, top1 in enumerate(tops):
        summary = json.loads(json.dumps(run.summary))
        summary["test"]["top1"] = top1
        seeds.append(Run(run.folder, run.text.replace("seed: 0", f"seed: {seed}"), summary, run.lines))
    return Group(name, tuple(seeds))


def test_gaps_of_many_seeds_are_paired(runs: Path) -> None:
    one, other = (with_tops(runs, "kd", tops) for tops in ([3, 1, 5, 7, 9], [1, 0, 4, 5, 7]))
    gap = Gaps([one, other], Outputs("cpu"))(one, other)
    expected = ttest_rel([3, 1, 5, 7, 9], [1, 0, 4, 5, 7]).confidence_interval()
    assert (gap.points, gap.by) == (pytest.approx(1.6), "5 seeds, paired")
    assert gap.half == pytest.approx((expected.high - expected.low) / 2)


def test_gaps_of_few_seeds_pool_the_spread_of_all(runs: Path) -> None:
    groups = [with_tops(runs, "kd", tops) for tops in ([80.0, 82.0], [70.0, 71.0], [60.0])]
    measure = Gaps(groups, Outputs("cpu"))
    expected = ttest_ind([80, 82], [70, 71]).confidence_interval()
    gap = measure(groups[0], groups[1])
    assert (gap.points, gap.half) == (pytest.approx(10.5), pytest.approx((expected.high - expected.low) / 2))
    assert gap.by == "2 seeds each, spread pooled over all runs"
    lone = measure(groups[2], groups[0])
    assert lone.points == -21
    assert lone.half == pytest.approx(gap.half * 1.5**0.5)
    assert lone.by == "1 and 2 seeds, spread pooled over all runs"


def test_gaps_of_one_seed_are_paired_by_image(runs: Path) -> None:
    groups = {group.name: group for group in group_runs(find_runs([runs]))}
    kd, ce, outputs = groups["kd"], groups["ce"], Outputs("cpu")
    gap = Gaps([kd, ce], outputs)(kd, ce)
    assert gap.points == pytest.approx(kd.values("split", "top1")[0] - ce.values("split", "top1")[0])
    hits = [outputs.student_logits(group.chosen) for group in (kd, ce)]
    difference = [(logits.argmax(1) == targets).double() for logits, targets in hits]
    assert gap.half == pytest.approx(float(196 * (difference[0] - difference[1]).std() / 539**0.5))


def test_level_is_what_could_be_chance() -> None:
    assert Gap(-0.5, 0.6, "").level
    assert not Gap(-0.5, 0.4, "").level
    assert not Gap(-0.5, None, "").level


def test_ranked_by_validation(runs: Path) -> None:
    order = ranked(group_runs(find_runs([runs])))
    means = [sum(values) / len(values) for group in order if (values := group.values("validation", "top1"))]
    assert means == sorted(means, reverse=True)


def test_the_budget_at_the_end_is_that_of_the_summary(runs: Path) -> None:
    subject = Subject(group_runs(find_runs([runs / "disk" / "seed0"])), Outputs("cpu"))
    note = budget(subject).items[0]
    end = (subject.candidates[0].chosen.summary or {})["end"]
    assert f"disk used {end['budget_used']:.3g} of {end['budget']:.3g}" in note.text
