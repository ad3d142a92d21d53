from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scipy.stats import ttest_rel

from disk_kd.cli import main
from disk_kd.comparison import conditions
from disk_kd.config import ENVIRONMENT, RunConfig
from disk_kd.errors import RunError
from disk_kd.report.content import ReportContent, _shown
from disk_kd.report.inspection import example_help
from disk_kd.report.outputs import Outputs
from disk_kd.report.quantities import quantities
from disk_kd.report.reading import Group, Run, find_runs, group_runs, on_same_images
from disk_kd.report.verdict import Gap, gap_between, ranked
from disk_kd.run_folder import check_folder
from disk_kd.training import display


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


def test_fingerprints_tell_images_apart_where_they_were_read_alike(runs: Path, tmp_path: Path) -> None:
    def copy(name: str, mark: str, old: str = "", new: str = "") -> Run:
        folder = shutil.copytree(runs / "ce" / "seed0", tmp_path / name)
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(old, new))
        (folder / "data.json").write_text(json.dumps({"test": mark}))
        return Run.read(folder)

    folder = "name: folder\n  root: "
    here, there = (copy(n, "a", "name: digits\n  root: null", f"{folder}/{n}") for n in ("here", "there"))
    one, other, small = copy("one", "a"), copy("other", "b"), copy("small", "c", "image_size: null", "image_size: 4")
    earlier = copy("earlier", "a")
    (earlier.folder / "data.json").unlink()
    assert on_same_images([here, there], "test"), "a folder that was moved"
    assert not on_same_images([one, other], "test"), "other files in the same folder"
    assert on_same_images([one, small], "test"), "the same files, smaller"
    assert on_same_images([one, earlier], "test"), "by the options, where no fingerprint is known"
    assert [len(group.runs) for group in group_runs([one, other])] == [1, 1]


def test_conditions_are_read_once_for_all_seeds(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Counted(RunConfig):
        @classmethod
        def read(cls, folder: Path, **options: object) -> RunConfig:
            read.append(str(folder))
            return RunConfig.read(folder)

    monkeypatch.setattr(conditions, "RunConfig", Counted)
    for seed in range(6):
        folder = shutil.copytree(runs / "kd" / "seed0", tmp_path / f"seed{seed}")
        text = (folder / "config.yaml").read_text().replace("  seed: 0", f"  seed: {seed}")
        text = text.replace("  limit_train: 120", "  limit_train: 119")  # no other test reads this one
        (folder / "config.yaml").write_text(text.replace(str(runs / "kd" / "seed0"), str(folder)))
    found = [conditions.resolved_conditions(tmp_path / f"seed{seed}") for seed in range(6)]
    assert len(read) == 1
    assert found == [found[0]] * 6
    assert found[0]["data.limit_train"] == 119
    other = tmp_path / "seed5" / "config.yaml"
    other.write_text(other.read_text().replace("batch_size: 24", "batch_size: 25"))
    assert conditions.resolved_conditions(tmp_path / "seed5")["train.batch_size"] == 25


def test_groups_of_one_folder_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "teacher", tmp_path / "other" / "ce")
    both = [Run.read(runs / "ce" / "seed0"), Run.read(tmp_path / "other" / "ce")]
    assert [group.name for group in group_runs(both)] == [f"{runs.name}/ce", "other/ce"]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        Run.read(tmp_path)
    with pytest.raises(RunError, match="and holds none"):
        find_runs([tmp_path])


def test_training_lines_know_their_student_epochs(runs: Path) -> None:
    lines = Run.read(runs / "disk" / "seed0").student_lines
    assert [line["epochs"] for line in lines[:6]] == pytest.approx([0.4, 0.8, 1.0, 1.2, 1.6, 2.0])


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


@pytest.mark.parametrize("seeds", [2, 5])
def test_gaps_are_paired_by_the_seeds_that_both_have(runs: Path, seeds: int) -> None:
    ours, theirs = [3.0, 1.0, 5.0, 7.0, 9.0][:seeds], [1.0, 0.0, 4.0, 5.0, 7.0, 50.0][: seeds + 1]
    gap = gap_between(with_tops(runs, "kd", ours), with_tops(runs, "kd", theirs), Outputs("cpu"))
    expected = ttest_rel(ours, theirs[:seeds]).confidence_interval()
    assert (gap.points, gap.by) == (pytest.approx((expected.high + expected.low) / 2), f"{seeds} seeds, paired")
    assert gap.half == pytest.approx((expected.high - expected.low) / 2)


def test_a_gap_of_one_seed_has_an_interval_over_its_images_alone(runs: Path) -> None:
    groups = {group.name: group for group in group_runs(find_runs([runs]))}
    kd, ce, outputs = groups["kd"], groups["ce"], Outputs("cpu")
    gap = gap_between(kd, ce, outputs)
    assert gap.points == pytest.approx(kd.values("split", "top1")[0] - ce.values("split", "top1")[0])
    hits = [outputs.student_logits(group.chosen) for group in (kd, ce)]
    difference = [(logits.argmax(1) == targets).double() for logits, targets in hits]
    over_images = float(196 * (difference[0] - difference[1]).std() / 539**0.5)
    assert (gap.half, gap.half_over_images) == (None, pytest.approx(over_images))
    assert gap.text() == f"{gap.points:+.2f} points (one seed, ± {over_images:.2f} over images, without seed variance)"
    assert gap.numbers() == f"{gap.points:+.2f}", "as in the table of a comparison"


def test_a_gap_without_a_common_seed_has_no_interval(runs: Path) -> None:
    one, other = with_tops(runs, "kd", [3.0]), with_tops(runs, "kd", [1.0, 2.0])
    gap = gap_between(one, Group("other", other.runs[1:]), Outputs("cpu"))
    assert (gap.points, gap.half, gap.by) == (1.0, None, "no seed in common")


def test_what_could_be_chance() -> None:
    assert Gap(-0.5, 0.6, "").tie
    assert not Gap(-0.5, 0.4, "").tie
    assert Gap(-0.5, None, "").tie, "there is no interval"
    assert not Gap(-0.5, None, "", 0.4).tie


def test_ranked_by_validation(runs: Path) -> None:
    order = ranked(group_runs(find_runs([runs])))
    means = [sum(values) / len(values) for group in order if (values := group.values("validation", "top1"))]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("used", "asked", "words"),
    [
        (0.01, 0.01, "within the limit"),
        (0.01005, 0.01, "above the limit by less than 1%"),
        (0.0102, 0.01, "above the limit by 2%"),
        (0.5, 0.01, "50 times the limit"),
        (0.1, 0.0, "above the limit"),
    ],
)
def test_a_budget_is_held_or_it_is_not(runs: Path, used: float, asked: float, words: str) -> None:
    run = Run.read(runs / "disk" / "seed0")
    assert run.summary is not None
    run.summary["end"] |= {"budget_used": used, "budget": asked}
    section = quantities(ReportContent([Group("disk", (run,))], Outputs("cpu")))
    assert section is not None
    assert section.items[0].text == f"At the end of training: disk, budget used: {used:.3g} of {asked:.3g}, {words}."


OWN = """
from disk_kd.tasks import DiSKTask

class Own(DiSKTask):
    def __init__(self, student, teacher, *, heat: float = 2.0, **options):
        super().__init__(student, teacher, **options | {"student_temperature": heat})
"""


def test_a_class_that_derives_from_disk_keeps_its_settings(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In inspect, settings that its constructor renames too, and its quantities in the report."""
    (tmp_path / "own_disk.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = shutil.copytree(runs / "disk" / "seed0", tmp_path / "own")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"] |= {"name": "own_disk:Own", "heat": 3.0, "top_k": 4}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    own = Run.read(run)
    outputs = Outputs("cpu")
    student = outputs.student(own)
    helper = example_help(own, student, outputs.teacher(own.config, student), 10)
    price = (own.summary or {})["end"]["price"]
    assert (helper.student_temperature, helper.top_k, helper.price) == (3.0, 4, price)
    assert not student.training
    group, kd = Group("own", (own,)), Group("kd", (Run.read(runs / "kd" / "seed0"),))
    assert (group.helps_examples, kd.helps_examples) == (True, False)
    assert (group.quantities[0].name, kd.quantities) == ("budget", ())
    assert [line["epochs"] for line in own.student_lines][-1] == 12


def test_figures_of_many_groups_keep_disk_and_the_labels_alone(runs: Path) -> None:
    """The best of DiSK is seventh, where the place of the labels alone would push it out."""
    groups = [with_tops(runs, "kd", [90.0 - i]) for i in range(8)]
    groups = [Group(f"kd{i}", group.runs) for i, group in enumerate(groups)]
    groups.insert(6, with_tops(runs, "disk", [84.5]))
    groups.append(with_tops(runs, "ce", [10.0]))
    shown = [group.name for group in _shown(groups)]
    assert shown == ["kd0", "kd1", "kd2", "kd3", "kd4", "kd5", "disk", "ce"]


def test_the_budget_at_the_end_is_that_of_the_summary(runs: Path) -> None:
    content = ReportContent(group_runs(find_runs([runs / "disk" / "seed0"])), Outputs("cpu"))
    note = quantities(content).items[0]
    end = (content.candidates[0].chosen.summary or {})["end"]
    assert f"disk, budget used: {end['budget_used']:.3g} of {end['budget']:.3g}" in note.text


def test_options_that_do_not_change_the_result_are_the_same_everywhere(runs: Path, tmp_path: Path) -> None:
    """To the report, the conditions of a comparison and the resume check, for every option that says so of itself."""
    config = RunConfig.read(runs / "kd" / "seed0")
    changed = config.to_tree()
    for name in ENVIRONMENT:
        part, key = name.split(".")
        changed[part][key] = OTHER_VALUES[name]
        assert changed[part][key] != config.to_tree()[part][key], name
    folder = shutil.copytree(config.output, tmp_path / "run")
    (folder / "config.yaml").write_text(yaml.safe_dump(changed))
    one, other = Run.read(config.output), Run.read(folder)
    assert one.text != other.text
    assert (one.key, one.written_key) == (other.key, other.written_key)
    assert conditions.conditions(one.config) == conditions.conditions(other.config)
    (folder / "summary.json").unlink()
    resumed = RunConfig.from_tree(config.to_tree() | {"output": str(folder)}, resume=True)
    check_folder(resumed)
    with pytest.raises(RunError, match=r"was started with another train\.lr"):
        check_folder(replace(resumed, train=replace(resumed.train, lr=0.3)))


OTHER_VALUES = {
    "data.download": True,
    "data.stream": False,
    "data.workers": 3,
    "teacher.store": False,
    "train.compile": True,
    "train.compile_mode": "max-autotune",
    "train.device": "cuda:7",
    "train.log_every": 7,
    "train.checkpoint_every_s": 7.0,
    "train.logger": "wandb",
}
"""A value of each option in `ENVIRONMENT` that the runs do not have."""


OWN_METHOD = """
import torch.nn.functional as F

from disk_kd.tasks import Quantity, StudentTask


class Margin(StudentTask):
    @classmethod
    def quantities(cls, options):
        return (
            Quantity("margin", "Mean margin", "logits", limit="wanted", format=".4f", progress=True, column="margin"),
            Quantity("wanted", "Wanted margin", "logits", reduction="last"),
        )

    def __init__(self, student, *, wanted: float = 9.0):
        super().__init__(student)
        self.wanted = wanted

    def forward(self, input, target, teacher=None):
        logits, hint_loss = self.student_outputs(input, target, {})
        top = logits.detach().float().topk(2, 1).values
        margin = (top[:, 0] - top[:, 1]).mean()
        loss = F.cross_entropy(logits.float(), target)
        return self.result(loss, logits, hint_loss, ce_loss=loss, margin=margin, wanted=margin.new_tensor(self.wanted))
"""


def test_the_quantities_of_a_users_method_are_shown(
    tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the progress line, the summary and the report."""
    (tmp_path / "margin_method.py").write_text(OWN_METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(display, "PLAIN_EVERY_S", 0.0)
    options = [option for option in tiny if option != "--quiet"]
    assert main(["distill", *options, "--method=margin_method:Margin", "--output=run", "--train.log_every=1"]) == 0
    run = Run.read(tmp_path / "run")
    last = [line for line in run.lines if line["kind"] == "train"][-1]
    assert f"margin {last['margin']:.4f} of 9.0000  top-1" in capsys.readouterr().out
    steps = [line["margin"] for line in run.lines if line["kind"] == "train" and line["epoch"] == last["epoch"]]
    end = (run.summary or {})["end"]
    assert (end["margin"], end["wanted"]) == (pytest.approx(sum(steps) / len(steps)), 9.0)
    assert end["margin"] != last["margin"]
    section = quantities(ReportContent([Group("own", (run,))], Outputs("cpu")))
    assert section is not None
    note, figures = section.items
    assert note.text == f"At the end of training: own, mean margin: {end['margin']:.4f} of 9.0000, within the limit."
    (figure,) = figures.figures
    assert (figure.title, figure.note) == ("Mean margin", "Dotted: wanted.")
    assert "logits" in figure.svg
