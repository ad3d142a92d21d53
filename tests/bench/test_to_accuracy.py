from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from disk_kd.arguments import parse_run
from disk_kd.bench.to_accuracy import CONTESTANTS, Race, to_accuracy
from disk_kd.bench.to_accuracy.contestants import configs
from disk_kd.bench.to_accuracy.curves import Curve, Point, duels
from disk_kd.bench.to_accuracy.ours import OurTraining
from disk_kd.bench.to_accuracy.process import ContestantProcess, Work
from disk_kd.bench.to_accuracy.report import Outcome, csv_rows, csv_text, figure, markdown
from disk_kd.cli import main
from disk_kd.config import RunConfig
from disk_kd.errors import ConfigError
from disk_kd.files import save_tensors
from disk_kd.models import create_model

CPU = torch.device("cpu")
PEERS = [name for name, contestant in CONTESTANTS.items() if contestant.is_peer]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    torch.manual_seed(1)
    model = create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    save_tensors(tmp_path / "teacher.safetensors", model.state_dict())
    return str(tmp_path / "teacher.safetensors")


@pytest.fixture
def options(teacher: str, tmp_path: Path) -> list[str]:
    """Two epochs of 40 digits, from a teacher that learned nothing."""
    return [
        "digits/kd",
        f"--teacher.weights={teacher}",
        "--teacher.name=cifar_resnet10_xxxs",
        "--teacher.options={mean: [0.5], std: [0.5]}",
        "--student.options={mean: [0.5], std: [0.5]}",
        "--data.limit_train=40",
        "--train.batch_size=20",
        "--train.epochs=2",
        "--train.compile=false",
        "--train.device=cpu",
        f"--runs={tmp_path / 'runs'}",
    ]


class Here:
    """A contestant that takes its turns in this process."""

    def __init__(self, name: str, config: RunConfig, imports: list[str], workers: int | None) -> None:
        self.name, self.work = name, Work(name, config, 0)

    def turn(self) -> Curve:
        self.work.next()
        return self.work.curve

    def close(self, kill: bool = False) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disk_kd.bench.to_accuracy.process.keep_memory", lambda: True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")


def run_of(name: str, options: Sequence[str], folder: Path, *own: str) -> RunConfig:
    return configs([name], options, [(name, option) for option in own], folder)[name]


@pytest.mark.parametrize("name", list(CONTESTANTS))
def test_each_contestant_trains_its_epochs_and_is_timed(name: str, options: list[str], tmp_path: Path) -> None:
    if name == "torchdistill_kd":
        pytest.importorskip("torchdistill")
    ticks = iter(range(100))
    work = Work(name, run_of(name, options, tmp_path), 0, clock=lambda: float(next(ticks)))
    work.next()
    assert work.training is not None
    before = {key: value.clone() for key, value in work.training.student.state_dict().items()}
    work.next()
    work.next()
    assert [(point.epoch, point.images, point.seconds) for point in work.curve.points] == [(1, 40, 2.0), (2, 80, 3.0)]
    assert work.curve.done
    assert work.curve.prepare_s == 1.0
    assert 0 <= work.curve.final_top1 <= 100
    assert work.curve.test_top1 is not None
    assert any((before[key] != value).any() for key, value in work.training.student.state_dict().items())


@pytest.mark.parametrize("name", ["timm_kd", "torchdistill_kd", "disk_stored"])
def test_a_contestant_that_was_killed_goes_on_as_if_it_had_not_been(
    name: str, options: list[str], tmp_path: Path
) -> None:
    if name == "torchdistill_kd":
        pytest.importorskip("torchdistill")
    whole, first = (Work(name, run_of(name, options, tmp_path / folder), 0) for folder in ("whole", "cut"))
    for _ in range(3):
        whole.next()
    first.next()
    first.next()
    again = Work(name, run_of(name, options, tmp_path / "cut"), 0)
    again.next()
    assert again.curve == first.curve
    again.next()
    assert again.training is not None
    assert whole.training is not None
    ended, expected = again.training.student.state_dict(), whole.training.student.state_dict()
    assert all(torch.equal(ended[key], expected[key]) for key in expected)


def test_peers_and_ours_start_from_the_same_weights_and_set_the_same_rates(options: list[str], tmp_path: Path) -> None:
    works = [Work(name, run_of(name, options, tmp_path), 0) for name in ("timm_kd", "kd_online")]
    for work in works:
        work.next()
    timm, ours = (work.training for work in works)
    assert timm is not None
    assert isinstance(ours, OurTraining)
    assert all(torch.equal(a, b) for a, b in zip(timm.student.parameters(), ours.student.parameters(), strict=True))
    for work in works:
        work.next()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (timm.optimizer, ours.optimizers["student"])]  # type: ignore[attr-defined]
    assert rates[0] == rates[1]


def test_what_a_killed_preparation_left_is_not_used(options: list[str], tmp_path: Path) -> None:
    leftover = tmp_path / "kd_stored" / "teacher-store" / "half"
    leftover.mkdir(parents=True)
    Work("kd_stored", run_of("kd_stored", options, tmp_path), 0).next()
    assert not leftover.exists()


def test_the_whole_writes_curves_table_and_picture_and_goes_on(options: list[str], tmp_path: Path) -> None:
    names = ("plain_ce", "kd_stored")
    race = Race(tuple(options), names, targets=(1.0,), runs=tmp_path / "runs", output=tmp_path / "out")
    console = Console(width=200, record=True, file=io.StringIO())
    curves = to_accuracy(race, console, start=Here)
    assert [curve.name for curve in curves] == list(names)
    said = console.export_text()
    assert said.index("plain PyTorch, CE: epoch 1") < said.index("disk-kd, KD, stored teacher: epoch 1")
    assert said.index("disk-kd, KD, stored teacher: epoch 1") < said.index("plain PyTorch, CE: epoch 2")
    lines = list(csv.DictReader((tmp_path / "out" / "to-accuracy.csv").open()))
    assert [(line["contestant"], line["epoch"]) for line in lines] == [(name, e) for name in names for e in "12"]
    facts = json.loads((tmp_path / "out" / "to-accuracy.json").read_text())
    assert facts["contestants"]["plain_ce"]["method"] == "ce"
    assert str(tmp_path) not in json.dumps(facts)
    assert "| disk-kd, KD, stored teacher | plain PyTorch, CE |" in (tmp_path / "out" / "to-accuracy.md").read_text()
    assert (tmp_path / "out" / "to-accuracy.svg").read_text().startswith("<?xml")
    assert to_accuracy(race, Console(quiet=True), start=Here) == curves  # nothing is trained twice


def test_another_measurement_in_the_same_folder_is_refused(options: list[str], tmp_path: Path) -> None:
    race = Race(tuple(options), ("ce",), runs=tmp_path / "runs")
    to_accuracy(race, Console(quiet=True), start=Here)
    other = replace(race, own=(("ce", "train.lr=0.3"),))
    with pytest.raises(ConfigError, match="holds another measurement"):
        to_accuracy(other, Console(quiet=True), start=Here)


@pytest.mark.slow
def test_a_contestant_has_a_process_of_its_own(options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("torchdistill")  # its workers cannot be spawned: they start as in a user's program
    process = ContestantProcess("torchdistill_kd", run_of("torchdistill_kd", options, tmp_path), [], 1)
    assert not process.turn().points
    assert process.turn().points[0].images == 40
    process.close()
    refused = ContestantProcess("kd_online", run_of("kd_online", options, tmp_path, "teacher.weights=none"), [], 0)
    with pytest.raises(Exception, match="no teacher weights"):
        refused.turn()
    refused.close()


@pytest.mark.parametrize(
    ("names", "own", "more", "message"),
    [
        (["plain"], [], [], "unknown contestant 'plain'"),
        (["ce", "ce"], [], [], "none twice"),
        ([], [], [], "at least one contestant"),
        (["ce"], [("kd", "train.lr=1")], [], "unknown contestant 'kd'"),
        (["ce"], [], ["--data.validation=0"], "needs a validation split"),
        (["plain_ce"], [], ["--train.ema_decay=0.9"], "has no train.ema_decay"),
        (["kd_online"], [], ["--hint.name=fitnet"], "no feature method"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    names: list[str], own: list[tuple[str, str]], more: list[str], message: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        configs(names, [*options, *more], own, tmp_path)


def test_a_missing_torchdistill_is_told(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disk_kd.bench.to_accuracy.contestants.torchdistill_installed", lambda: False)
    with pytest.raises(ConfigError, match="pip install torchdistill"):
        configs(["torchdistill_kd"], options, [], tmp_path)


def test_a_contestants_own_options_are_its_own(options: list[str], tmp_path: Path) -> None:
    made = configs(["plain_ce", "kd_stored"], options, [("plain_ce", "train.weight_decay=0.25")], tmp_path)
    assert made["plain_ce"].train.weight_decay == 0.25
    assert made["kd_stored"].train.weight_decay == parse_run("distill", options).train.weight_decay
    assert made["plain_ce"].runs != made["kd_stored"].runs  # neither reads what the other stored


@pytest.mark.parametrize("target", [0.0, 101.0])
def test_a_target_is_a_percentage(target: float) -> None:
    with pytest.raises(ConfigError, match="at most 100 percent"):
        Race(targets=(target,))


def a_curve(name: str, is_peer: bool, *points: tuple[float, float]) -> Curve:
    each = [Point(epoch, 100 * epoch, seconds, top1) for epoch, (seconds, top1) in enumerate(points, 1)]
    return Curve(name, name, is_peer, len(each), 1.0, each, 50.0)


def test_seconds_are_those_of_the_first_epoch_that_has_it() -> None:
    peer = a_curve("plain_ce", True, (10.0, 30.0), (20.0, 52.0), (30.0, 50.0))
    ours = a_curve("kd_stored", False, (3.0, 40.0), (5.0, 51.0), (7.0, 49.0))
    never = a_curve("kd_online", False, (3.0, 40.0))
    assert peer.seconds_to(52.0) == 20.0
    assert peer.seconds_to(52.1) is None
    won, lost = duels([peer, ours, never])
    assert (won.top1, won.ours_s, won.peer_s, won.ratio) == (50.0, 5.0, 20.0, 4.0)
    assert (lost.ours_s, lost.ratio) == (None, None)


@pytest.fixture
def outcome() -> Outcome:
    curves = [a_curve("plain_ce", True, (60.0, 30.0), (120.0, 40.0)), a_curve("kd_stored", False, (30.0, 41.0))]
    options = {"method": "kd", "method_options": {"temperature": "2.0", "other": "1"}, "epochs": 2, "batch_size": 20}
    options |= dict.fromkeys(["optimizer", "lr", "weight_decay", "schedule", "warmup", "views", "seed"])
    facts = {"student": "S", "teacher": "T", "data": "D", "hardware": "H", "threads": 2, "recipe": "R"}
    facts |= {"versions": {"torch": "2"}, "git_revision": "abc"}
    return Outcome(curves, [35.0], {**facts, "contestants": {curve.name: options for curve in curves}})


def test_the_table_says_when_each_target_was_reached(outcome: Outcome) -> None:
    text = markdown(outcome)
    assert "# Time to accuracy: S from T on D; H, 2 threads" in text
    assert "| plain_ce | 2 | 40.00 | 50.00 | 1.0 | 59.5 | 120 | 120 |" in text
    assert "| kd_stored | plain_ce | 40.00 | 30 | 120 | 4.00 |" in text
    assert "kd, temperature 2.0 |" in text
    assert csv_text(csv_rows(outcome.curves)).splitlines()[1] == "plain_ce,plain_ce,1.0,1,100,60.0,30.0"


def test_the_picture_has_no_ground_of_its_own(outcome: Outcome) -> None:
    drawing = figure(outcome)
    assert drawing.get_facecolor()[3] == 0
    (axes,) = drawing.axes
    assert axes.get_facecolor()[3] == 0
    assert list(axes.get_lines()[0].get_xdata()) == [1.0, 2.0]
    assert axes.get_xscale() == "log"


def test_the_command_line_hands_all_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Race] = []
    monkeypatch.setattr("disk_kd.bench.to_accuracy.to_accuracy", lambda race, console: seen.append(race))
    arguments = ["bench", "--to-accuracy", "digits/kd", "--data.root", "DIR", "--target", "50", "--target", "60"]
    arguments += ["--epochs", "3", "--only", "ce", "train.lr=1", "--contestants", "ce", "--output", str(tmp_path)]
    assert main(arguments) == 0
    expected = ("digits/kd", "--data.root=DIR", "--train.epochs=3")
    assert seen == [Race(expected, ("ce",), (("ce", "train.lr=1"),), (50.0, 60.0), None, Path("runs"), tmp_path)]


def test_without_a_recipe_it_is_the_one_of_the_shipped_student() -> None:
    arguments = Race(("--data.root=DIR",)).arguments
    assert arguments == ["cifar100/pretrained-resnet10_s", "--data.validation=0.1", "--data.root=DIR"]
    assert Race(("digits/kd",)).arguments == ["digits/kd"]
