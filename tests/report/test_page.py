"""The report of real runs: true, whole, and of one file."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from disk_kd.cli import main
from disk_kd.report import report, report_comparison
from disk_kd.report.reading import find_runs, group_runs

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a report; raises where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, *titles: str) -> list[dict[str, str]]:
        """The rows of the first table with these columns."""
        table = next(table for table in self.tables if set(titles) <= set(table[0]))
        return [dict(zip(table[0], row, strict=True)) for row in table[1:]]

    def runs(self) -> list[dict[str, str]]:
        """The rows of the table of the runs, with what they cost."""
        return [a | b for a, b in zip(self.table("top-1 %", "NLL"), self.table("run", "parameters"), strict=True)]


@pytest.fixture(scope="module")
def single(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("single") / "r.html"
    return report([runs / "disk" / "seed0"], output=output, device="cpu").read_text()


@pytest.fixture(scope="module")
def several(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    paths = [runs / name for name in ("teacher", "ce", "kd", "disk")]
    return report(paths, output=tmp_path_factory.mktemp("several") / "r.html", device="cpu").read_text()


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_single_runs_numbers_are_those_of_its_summary(single: str, runs: Path) -> None:
    told, test = summary(runs / "disk" / "seed0"), summary(runs / "disk" / "seed0")["test"]
    row, teacher = Page(single).runs()
    assert row["run"] == "disk"
    assert (row["top-1 %"], row["top-5 %"]) == (f"{test['top1']:.2f}", f"{test['top5']:.2f}")
    assert (row["NLL"], row["ECE"]) == (f"{test['nll']:.4f}", f"{test['ece']:.4f}")
    assert (row["parameters"], row["multiply-adds"]) == (f"{told['parameters']:,}", f"{told['multiply_adds']:,}")
    assert row["images/s"] == f"{told['images_per_s']:,.0f}"
    assert (row["epochs"], row["start"], row["seeds"]) == ("12", "scratch", "1")
    of_teacher = summary(runs / "teacher")
    assert teacher["top-1 %"] == f"{of_teacher['test']['top1']:.2f}"
    assert teacher["multiply-adds"] == f"{of_teacher['multiply_adds']:,}"


def test_predictions_made_anew_have_the_summarys_metrics(single: str, runs: Path) -> None:
    test = summary(runs / "disk" / "seed0")["test"]
    row = Page(single).table("mean confidence %")[0]
    assert (row["top-1 %"], row["NLL"]) == (f"{test['top1']:.2f}", f"{test['nll']:.4f}")
    assert "have changed since" not in single


def test_several_runs_have_means_over_their_seeds(several: str, runs: Path) -> None:
    rows = {row["run"]: row for row in Page(several).runs()}
    assert rows.keys() == {"ce", "kd", "disk", "teacher cifar_resnet10_xxs"}, "a run that taught is no candidate"
    tops = [summary(runs / "disk" / f"seed{seed}")["test"]["top1"] for seed in (0, 1)]
    assert rows["disk"]["top-1 %"] == f"{statistics.fmean(tops):.2f} ± {statistics.stdev(tops):.2f}"
    every = [row for row in Page(several).table("chosen epoch") if row["run"] == "disk"]
    assert [row["top-1 %"] for row in every] == [f"{top:.2f}" for top in tops]


def test_the_best_on_validation_is_to_be_shipped(several: str, runs: Path) -> None:
    def validated(name: str) -> float:
        return statistics.fmean(summary(path)["validation"]["top1"] for path in (runs / name).iterdir())

    best = max(("ce", "kd", "disk"), key=validated)
    assert f'<p class="lead">Ship {best}: ' in several
    assert Page(several).runs()[0]["run"] == best


def test_the_shipped_files_own_score_stands_beside_the_mean_of_its_group(runs: Path, tmp_path: Path) -> None:
    text = report([runs / "disk"], output=tmp_path / "r.html", device="cpu").read_text()
    seeds = [summary(runs / "disk" / f"seed{seed}") for seed in (0, 1)]
    shipped = max(seeds, key=lambda seed: seed["validation"]["top1"])["test"]["top1"]
    tops = [seed["test"]["top1"] for seed in seeds]
    mean = f"{statistics.fmean(tops):.2f} ± {statistics.stdev(tops):.2f}%"
    assert f"reaches {mean} top-1 on test over 2 seeds, {shipped:.2f}% for the shipped file" in text
    assert f"its best seed on validation): {shipped:.2f}% top-1 on test; all its seeds: {mean}" in text


def resummed(source: Path, target: Path, **splits: dict) -> Path:
    """A copy of a run whose summary has other numbers, by split."""
    shutil.copytree(source, target)
    told = summary(target)
    for split, numbers in splits.items():
        told[split] |= numbers
    (target / "summary.json").write_text(json.dumps(told))
    return target


def test_what_was_validated_on_other_images_is_ranked_on_test(runs: Path, tmp_path: Path) -> None:
    """The best on its own validation images is not the best of all."""
    numbers = {"validation": {"top1": 99.0}, "test": {"top1": 1.0}}
    other = resummed(runs / "kd" / "seed0", tmp_path / "kd", **numbers)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("split_seed: 0", "split_seed: 1"))
    text = report([runs / "ce", other], output=tmp_path / "r.html", device="cpu").read_text()
    assert re.search(r'<p class="lead">Ship ce: .*, the best on test[;.]', text)
    assert "The runs have different validation images" in text
    assert "The best of them is then too optimistic" in text


@pytest.mark.parametrize(("split", "lead"), [("test", "No student can be chosen"), ("validation", "Ship ")])
def test_runs_whose_images_changed_are_not_one_group(split: str, lead: str, runs: Path, tmp_path: Path) -> None:
    """The same options, another seed, and other images in the folder."""
    first, other = (shutil.copytree(runs / "disk" / f"seed{s}", tmp_path / f"seed{s}") for s in (0, 1))
    assert [group.name for group in group_runs(find_runs([tmp_path]))] == [tmp_path.name]
    (other / "data.json").write_text(json.dumps(json.loads((other / "data.json").read_text()) | {split: "f" * 64}))
    text = report([tmp_path], output=tmp_path / "r.html", device="cpu").read_text()
    assert f'<p class="lead">{lead}' in text
    assert ("The runs have different validation images" in text) == (split == "validation")
    mark = json.loads((first / "data.json").read_text())[split][:8]
    names = [row["run"] for row in Page(text).runs()[:2]]
    assert sorted(names) == [f"{tmp_path.name} 1", f"{tmp_path.name} 2"]
    assert re.search(rf"<li>{split} images: ({mark}; ffffffff|ffffffff; {mark}) in {tmp_path.name} [12]</li>", text)


def test_runs_of_different_test_images_are_not_ranked(runs: Path, tmp_path: Path) -> None:
    few = {"test": {"samples": 100}, "validation": {"samples": 20}}
    other = resummed(runs / "kd" / "seed0", tmp_path / "kd", **few)
    text = report([runs / "ce", other], output=tmp_path / "r.html", device="cpu").read_text()
    assert "No student can be chosen, because the runs were measured on different images." in text
    assert "Runs that were measured on different images cannot be ranked." in text
    for absent in ("Ship ", "Gain over", "the best on", "to the chosen"):
        assert absent not in text


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        # 126 images: 1.92 nats of log-likelihood are 0.015 an image.
        (
            {"nll": 0.5, "nll_scaled": 0.486},
            {"nll": 0.5, "nll_scaled": 0.4},
            "no significant gain on 126 val",
        ),
        (
            {"nll": 0.5, "nll_scaled": 0.484},
            {"nll": 0.5, "nll_scaled": 0.4},
            "-confident. Divide the logits",
        ),
        (
            {"nll": 0.5, "nll_scaled": 0.3},
            {"nll": 0.5, "nll_scaled": 0.51},
            "Do not divide the logits of",
        ),
    ],
)
def test_a_temperature_is_advised_where_validation_supports_it(
    validation: dict, test: dict, message: str, runs: Path, tmp_path: Path
) -> None:
    run = resummed(runs / "kd" / "seed0", tmp_path / "kd", validation=validation, test=test)
    assert message in report([run], device="cpu").read_text()


def test_up_to_five_classes_have_no_top5(single: str, runs: Path, tmp_path: Path) -> None:
    assert "top-5 %" in single
    run = shutil.copytree(runs / "kd" / "seed0", tmp_path / "kd")
    (run / "summary.json").write_text(json.dumps(summary(run) | {"classes": 5}))
    assert "top-5" not in report([run], device="cpu").read_text()


def test_the_tables_of_the_runs_fit_a_page_of_1200_pixels(several: str) -> None:
    """Its columns are at most nine; chromium shows twelve of them in 1,200 pixels only in part."""
    page = Page(several)
    assert len(page.table("top-1 %", "NLL")[0]) <= 9
    assert len(page.table("run", "parameters")[0]) <= 9


def test_wide_tables_show_that_they_go_on(single: str) -> None:
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto[^}]*var\(--shadow\)", single)


@pytest.mark.parametrize("which", ["single", "several"])
def test_the_page_is_whole_and_reads_well(which: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(which)
    page = Page(text)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert links
    assert {f"#{name}" for name in ids} >= links
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["caption"] == tags["table"] > 3
    assert tags["figcaption"] == tags["figure"] > 5
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert 0 < tags["img"] <= 30
    assert not re.search(r"""(?:src|href)="(?!#|data:)|url\((?!#)|@import|https?://""", text), "nothing from outside"
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_all_parts_are_there(single: str) -> None:
    for title in ("Budget used", "Price of help", "Mean g", "Share helped", "Loss, validation"):
        assert f"<strong>{title}</strong>" in single
    for title in ("Reliability", "Risk and coverage", "Accuracy per class", "Top-1 against multiply-adds"):
        assert f"<strong>{title}</strong>" in single
    assert "Agreement with the teacher" in single
    assert "Confusions that disk makes more often" in single
    assert "What the methods log" in single
    assert "<dt>help</dt>" in single
    assert "Training images, those with most help first" in single
    assert "helper: exact" in single
    assert "Not shown" not in single


def test_text_is_escaped(single: str) -> None:
    assert "DiSK &lt;b&gt;exact&lt;/b&gt; &amp; true" in single
    assert "<b>" not in single


def test_the_same_run_gives_the_same_bytes(single: str, runs: Path, tmp_path: Path) -> None:
    again = report([runs / "disk" / "seed0"], output=tmp_path / "again.html", device="cpu")
    assert again.read_text() == single


def test_one_run_has_its_report_beside_it(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "ce" / "seed0", tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--device=cpu"]) == 0
    assert f"Written: {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    text = (tmp_path / "run" / "report.html").read_text()
    assert "What the methods log" not in text
    assert "Examples with most help" not in text
    assert "<dt>help</dt>" not in text
    assert "Not shown: run was trained without a teacher, and no run of this report has one." in text


def test_copies_diverged_runs_and_dollars_have_a_report(runs: Path, tmp_path: Path) -> None:
    for name in ("seed0", "copy of $seed0$"):
        shutil.copytree(runs / "disk" / "seed0", tmp_path / "disk" / name)
    diverged = shutil.copytree(runs / "disk" / "seed1", tmp_path / "diverged")
    (diverged / "summary.json").unlink()
    log = (diverged / "metrics.jsonl").read_text().splitlines()
    nothing = dict.fromkeys(("loss", "budget", "budget_used", "price"))
    log.append(json.dumps(json.loads(log[0]) | nothing | {"step": 999}))
    (diverged / "metrics.jsonl").write_text("\n".join(log) + "\n")
    (row, *_) = Page(report([tmp_path], output=tmp_path / "r.html", device="cpu").read_text()).runs()
    assert row["seeds"] == "1"
    named = {"a$_$": [runs / "disk/seed0", runs / "disk/seed1"], "b$_$": [runs / "kd/seed0"]}
    report_comparison(named, None, tmp_path / "c.html")
    assert "a$_$" in (tmp_path / "c.html").read_text()


@pytest.fixture(scope="module")
def rows(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a comparison, with names of its own and a baseline that is not the labels alone."""
    folders = {"x/labels": ["ce/seed0"], "x/teacher": ["kd/seed0"], "x/helped": ["disk/seed1", "disk/seed0"]}
    output = tmp_path_factory.mktemp("rows") / "r.html"
    report_comparison({name: [runs / f for f in of] for name, of in folders.items()}, "x/teacher", output)
    return output.read_text()


def test_a_comparison_has_its_rows_side_by_side(rows: str, runs: Path) -> None:
    page = Page(rows)
    found = {row["run"]: row for row in page.table("top-1 %", "gain over teacher")}
    assert found.keys() == {"labels", "teacher", "helped", "teacher cifar_resnet10_xxs"}
    assert (found["helped"]["seeds"], found["labels"]["seeds"], found["teacher"]["gain over teacher"]) == ("2", "1", "")
    tops = [summary(runs / name)["test"]["top1"] for name in ("disk/seed0", "disk/seed1", "kd/seed0")]
    gain = found["helped"]["gain over teacher"]
    assert gain == f"{tops[0] - tops[2]:+.2f}", "of the one seed that both have, as in the table of a comparison"
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.elements if tag == "svg"]
    assert any(f"helped {statistics.fmean(tops[:2]):.2f}" in label for label in labels if "Top-1 of each seed" in label)
    assert any(label.startswith("Gain over teacher: ") for label in labels)
    assert "trained on 120 images and measured on" in rows


def test_what_all_rows_share_is_told_once(rows: str) -> None:
    assert "Same in all rows: student: cifar_resnet10_xxxs; epochs: 12; start: scratch." in rows
    assert "All students cost the same: " in rows
    assert "epochs" not in Page(rows).table("top-1 %", "gain over teacher")[0]


def test_labels_alone_are_the_baseline_where_none_is_named(several: str) -> None:
    assert "<strong>Gain over ce</strong>" in several


def changed(source: Path, target: Path, **options: object) -> Path:
    """A copy of a run with other options, by dotted name."""
    shutil.copytree(source, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    for name, value in options.items():
        part, key = name.split("__")
        config[part][key] = value
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


def test_a_lost_teacher_is_told(runs: Path, tmp_path: Path) -> None:
    run = changed(runs / "disk" / "seed0", tmp_path / "run", teacher__weights=str(tmp_path / "gone"))
    text = report([run], device="cpu").read_text()
    assert text.count(f"Not shown: no teacher weights at {tmp_path / 'gone'}") == 3
    assert "<strong>Reliability</strong>" in text


def test_lost_data_are_told(runs: Path, tmp_path: Path) -> None:
    lost = {"data__name": "cifar100", "data__root": str(tmp_path / "gone")}
    text = report([changed(runs / "kd" / "seed0", tmp_path / "run", **lost)], device="cpu").read_text()
    assert f"Not shown: cifar100: there is no folder data.root {tmp_path / 'gone'}" in text
    assert "<strong>Loss, training</strong>" in text


def test_other_data_than_the_summarys_are_told(runs: Path, tmp_path: Path) -> None:
    run = changed(runs / "ce" / "seed0", tmp_path / "run")
    told = summary(run)
    told["test"]["top1"] += 1
    (run / "summary.json").write_text(json.dumps(told))
    assert "Data, weights or versions have changed since" in report([run], device="cpu").read_text()


def test_an_unfinished_run_shows_what_is_there(runs: Path, tmp_path: Path) -> None:
    run = changed(runs / "disk" / "seed0", tmp_path / "run")
    for name in ("summary.json", "student.safetensors"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines[: len(lines) // 2])
    text = report([run], device="cpu").read_text()
    assert "run is not finished: 6 of 12 student epochs are done" in text
    assert "<strong>Budget used</strong>" in text
    assert text.count("Not shown: no run is finished.") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "{tmp}"], "is not a run directory .* and holds none; give run directories"),
        (["report", "{runs}/ce", "{runs}/kd"], "a report of 2 paths needs a file; give --output FILE"),
        (["report", "{runs}/ce/seed0", "--output={tmp}/no/r.html"], "cannot be written to .*; give --output a file"),
        (["report", "{runs}/ce/seed0", "--device=tpu9"], "no device 'tpu9' here"),
        (["report"], "the following arguments are required: RUN"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(tmp=tmp_path, runs=runs) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_a_broken_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("- no mapping\n")
    assert main(["report", str(tmp_path)]) == 2
    assert re.search(r"cannot read the run in .*\n\Z", capsys.readouterr().err)
