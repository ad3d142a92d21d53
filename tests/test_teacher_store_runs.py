"""Stored teacher outputs in whole runs: the same losses, one store for all, and who decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from disk_kd.cli import main
from disk_kd.models import load_state_dict, save_state_dict

METHODS = {
    "kd": ["--method=kd"],
    "disk": ["--method=disk"],
    "disk-map": ["--method=disk", "--method.helper=teacher-map", "--method.helper_warmup_epochs=1"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *tiny, f"--output={folder / 'teacher'}", "--train.epochs=3"]) == 0
    return folder


@pytest.fixture
def options(runs: Path, tiny: Sequence[str]) -> list[str]:
    teacher = [f"--teacher.weights={runs / 'teacher'}", "--teacher.name=cifar_resnet10_xxxs"]
    crop = ["--data.augment.crop_padding=1", "--data.augment.cutout=3"]
    return [*tiny, *teacher, *crop, f"--runs={runs}", "--train.log_every=1"]


def losses(run: Path) -> list[float]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if line["kind"] == "train"]


def decided(run: Path) -> tuple[bool, int | None]:
    config = yaml.safe_load((run / "config.yaml").read_text())
    return config["teacher"]["store"], config["data"].get("views")


@pytest.mark.parametrize("method", METHODS)
def test_stored_and_online_runs_have_the_same_losses(method: str, options: list[str], tmp_path: Path) -> None:
    """To the precision of the stored half precision, in every step, views met anew and again."""
    for store in ("true", "false"):
        command = ["distill", *options, *METHODS[method], "--views=2", "--train.epochs=4", "--train.lr=0.002"]
        assert main([*command, f"--teacher.store={store}", f"--output={tmp_path / store}"]) == 0
    stored, online = losses(tmp_path / "true"), losses(tmp_path / "false")
    assert len(stored) >= 20
    assert stored == pytest.approx(online, rel=1e-2, abs=1e-3)
    assert stored[:5] == pytest.approx(online[:5], rel=1e-3)
    assert stored != online


@pytest.mark.parametrize("store", ["true", "false"])
def test_a_teacher_that_is_not_finite_is_named(
    store: str, options: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_state_dict(runs / "teacher" / "student.safetensors")
    weights["linear.bias"][0] = float("inf")
    save_state_dict(tmp_path / "teacher.safetensors", weights)
    given = [f"--teacher.weights={tmp_path / 'teacher.safetensors'}", f"--teacher.store={store}", "--method=kd"]
    assert main(["distill", *options, *given, f"--runs={tmp_path}", f"--output={tmp_path / 'run'}"]) == 2
    assert "the teacher's logits are not finite" in capsys.readouterr().err


def test_methods_and_numbers_of_views_share_one_store(options: list[str], runs: Path, tmp_path: Path) -> None:
    share = [*options, f"--runs={tmp_path}"]
    assert main(["distill", *share, *METHODS["kd"], "--views=1", f"--output={tmp_path / 'kd'}"]) == 0
    (folder,) = (tmp_path / "teacher-store").iterdir()
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert main(["distill", *share, *METHODS["disk-map"], "--views=1", f"--output={tmp_path / 'map'}"]) == 0
    assert list((tmp_path / "teacher-store").iterdir()) == [folder]
    second = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert first.items() < second.items()


def test_auto_gives_each_pass_a_view_where_that_is_affordable(options: list[str], tmp_path: Path) -> None:
    share = [*options, f"--runs={tmp_path}", *METHODS["kd"]]
    assert main(["distill", *share, f"--output={tmp_path / 'run'}"]) == 0
    assert decided(tmp_path / "run") == (True, 2)


def test_the_flag_forbids(options: list[str], tmp_path: Path) -> None:
    share = [*options, f"--runs={tmp_path}", *METHODS["kd"], "--teacher.store=false"]
    assert main(["distill", *share, f"--output={tmp_path / 'run'}"]) == 0
    assert decided(tmp_path / "run") == (False, None)
    assert not (tmp_path / "teacher-store").exists()


def test_auto_runs_the_teacher_where_views_are_too_large(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disk_kd.storing.AFFORDABLE_BYTES", 100)
    share = [*options, f"--runs={tmp_path}", *METHODS["kd"]]
    assert main(["distill", *share, f"--output={tmp_path / 'run'}"]) == 0
    assert decided(tmp_path / "run") == (False, None)


def test_auto_does_not_reduce_the_number_of_views(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch whose view had been met before would see other data than it does without a store."""
    monkeypatch.setattr("disk_kd.storing.view_bytes", lambda *_: 100)
    monkeypatch.setattr("disk_kd.storing.AFFORDABLE_BYTES", 1100)
    share = [*options, f"--runs={tmp_path}", *METHODS["kd"], "--train.epochs=12"]
    assert main(["distill", *share, f"--output={tmp_path / 'run'}"]) == 0
    assert decided(tmp_path / "run") == (False, None)


def test_labels_do_not_tell_stores_apart(options: list[str], tmp_path: Path) -> None:
    """Runs with clean and with wrong labels share one store; other images have another."""
    runs = f"--runs={tmp_path}"
    command = ["distill", *options, runs, "--method=kd", "--views=2", "--teacher.store=true", "--train.epochs=1"]

    def stores(name: str, *more: str) -> set[str]:
        assert main([*command, *more, f"--output={tmp_path / name}"]) == 0
        return {path.name for path in (tmp_path / "teacher-store").iterdir()}

    clean = stores("clean")
    assert len(clean) == 1
    assert stores("noisy", "--data.label_noise=0.3") == clean
    marks = [json.loads((tmp_path / name / "data.json").read_text())["training"] for name in ("clean", "noisy")]
    assert marks[0] != marks[1], "to resume or to reuse a run labels count"
    assert len(stores("other", "--data.split_seed=1")) == 2


def test_auto_stores_given_views_only_if_they_are_met_again(options: list[str], tmp_path: Path) -> None:
    share = [*options, f"--runs={tmp_path}", *METHODS["kd"]]
    for views, stored in (("2", False), ("1", True)):
        assert main(["distill", *share, f"--views={views}", f"--output={tmp_path / views}"]) == 0
        assert decided(tmp_path / views) == (stored, int(views))


def test_a_resumed_run_keeps_its_decision(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", *options, f"--runs={tmp_path}", *METHODS["kd"], f"--output={tmp_path / 'run'}", "--resume"]
    assert main(command) == 0
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr("disk_kd.storing.AFFORDABLE_BYTES", 100)
    assert main(command) == 0
    assert decided(tmp_path / "run") == (True, 2)
    assert main([*command, "--views=1"]) == 2
    assert "started with another data.views" in capsys.readouterr().err


def test_store_teacher_command_makes_what_distill_reads(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = [option for option in options if option != "--quiet"]
    share = [f"--runs={tmp_path}", *METHODS["disk-map"], "--views=2"]
    assert main(["store-teacher", *loud, *share]) == 0
    said = capsys.readouterr().out
    assert "bytes per sample and view" in said
    (folder,) = (tmp_path / "teacher-store").iterdir()
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert main(["distill", *options, *share, f"--output={tmp_path / 'run'}"]) == 0
    assert decided(tmp_path / "run") == (True, 2)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == made


def test_top_k_keeps_what_the_method_reads(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = [*options, f"--runs={tmp_path}", "--method=disk", "--views=1", "--teacher.store_top_k=4"]
    assert main(["distill", *share, f"--output={tmp_path / 'refused'}"]) == 2
    assert "largest logits, but teacher.store_top_k keeps 4" in capsys.readouterr().err
    assert main(["distill", *share, "--method.top_k=4", f"--output={tmp_path / 'run'}"]) == 0
    assert (
        main(["distill", *share, "--method.top_k=4", "--teacher.store_top_k=10", f"--output={tmp_path / 'all'}"]) == 2
    )
    assert "top_k is expected from 1 to 9 for 10 classes, got 10" in capsys.readouterr().err


def test_store_teacher_without_a_teacher(tiny: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store-teacher", *tiny, "--method=ce"]) == 2
    assert "has no teacher" in capsys.readouterr().err
