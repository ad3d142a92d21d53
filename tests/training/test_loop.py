"""The loop: a golden trajectory, gradient accumulation, what an epoch counts, precision and selection."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from disk_kd.cli import main
from disk_kd.data import Batch, Loader
from disk_kd.training.selection import selection_margin
from disk_kd.training.step import micro_batches

GOLDEN = Path(__file__).parents[1] / "golden" / "trajectory.json"
GOLDEN_RUN = ["train", "--train.epochs=4", "--train.log_every=1", "--data.augment.crop_padding=1", "--train.lr=0.05"]


def lines(run: Path, kind: str = "train") -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    run = tmp_path_factory.mktemp("golden") / "run"
    assert main([GOLDEN_RUN[0], *tiny, *GOLDEN_RUN[1:], f"--output={run}"]) == 0
    return run


def test_twenty_steps_follow_the_recorded_losses(golden_run: Path) -> None:
    """Recorded by `make golden`; other processors round differently, hence the tolerance."""
    recorded = json.loads(GOLDEN.read_text())["loss"]
    losses = [line["loss"] for line in lines(golden_run)]
    assert len(losses) == len(recorded) == 20
    assert losses == pytest.approx(recorded, rel=2e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny: Sequence[str], tmp_path: Path) -> None:
    """On a network without batch statistics, where a batch in parts is the same mathematics."""
    model = ["--student.name=vit_tiny_patch16_224", "--train.epochs=1", "--train.log_every=1", "--train.lr=0.01"]
    small = "{img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"
    losses = {}
    for accumulate in (1, 3):
        run = tmp_path / str(accumulate)
        options = [*tiny, *model, f"--student.options={small}", f"--train.accumulate={accumulate}", f"--output={run}"]
        assert main(["train", *options]) == 0
        losses[accumulate] = [line["loss"] for line in lines(run)]
    assert len(losses[1]) == 5
    assert losses[3] == pytest.approx(losses[1], rel=1e-5)


def test_activations_computed_twice_train_the_same(golden_run: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*GOLDEN_RUN[1:], "--train.grad_checkpointing=true"]
    assert main([GOLDEN_RUN[0], *tiny, *options, f"--output={run}"]) == 0
    assert [line["loss"] for line in lines(run)] == pytest.approx([line["loss"] for line in lines(golden_run)])


def test_accumulation_moves_the_price_once_a_step(tiny: Sequence[str], tmp_path: Path) -> None:
    """The price of a step depends on the whole batch; a student that learns nothing shows the price alone."""
    teacher = tmp_path / "teacher"
    assert main(["train", *tiny, f"--output={teacher}"]) == 0
    still = [
        "--train.lr=1e-12",
        "--train.epochs=1",
        "--train.log_every=1",
        "--method=disk",
        "--method.budget=0.002",
    ]
    small = "{img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"
    student = ["--student.name=vit_tiny_patch16_224", f"--student.options={small}"]
    learn = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}"]
    prices = {}
    for accumulate in (1, 4):
        run = tmp_path / str(accumulate)
        own = [f"--train.accumulate={accumulate}", f"--output={run}"]
        assert main(["distill", *tiny, *student, *learn, *still, *own]) == 0
        prices[accumulate] = [line["price"] for line in lines(run)]
    assert prices[1][-1] > prices[1][0] == 0
    assert prices[4] == pytest.approx(prices[1], rel=1e-4)


def test_a_helper_starts_its_schedule_after_its_own_warm_up(tiny: Sequence[str], tmp_path: Path) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert main(["train", *tiny, f"--output={teacher}"]) == 0
    learn = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}", "--method=disk"]
    rounds = [
        "--method.helper=teacher-pooled",
        "--method.student_epochs=1",
        "--method.helper_epochs=1",
        "--method.helper_warmup_epochs=2",
    ]
    options = [*tiny, *learn, *rounds, "--train.epochs=4", "--train.cycles=2", "--train.log_every=1", "--train.lr=0.1"]
    assert main(["distill", *options, f"--output={run}"]) == 0
    rates = {phase: [line["lr"] for line in lines(run) if line["phase"] == phase] for phase in ("student", "helper")}
    warmed = [0.1 * (0.3 + 0.7 * (1 + math.cos(math.pi * step / 10)) / 2) for step in range(10)]
    assert rates["helper"][:11] == pytest.approx([*warmed, 0.1])
    assert rates["helper"][11] < 0.1
    assert rates["student"].count(0.1) == 2, "one peak a cycle"
    assert min(rates["student"]) > 0

    assert main(["distill", *options, "--train.warmup_epochs=0.5", f"--output={run}-warm"]) == 0
    warm = [line["lr"] for line in lines(tmp_path / "run-warm") if line["phase"] == "helper"]
    assert warm[:10] == pytest.approx(warmed)
    assert warm[10] == 0.001


def test_micro_batches_cover_the_batch_in_order() -> None:
    batch = Batch(torch.arange(10.0).view(5, 2), torch.arange(5), torch.arange(5, 10), view=3)
    parts = list(micro_batches(batch, 2))
    assert [len(part.targets) for part in parts] == [3, 2]
    assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)
    assert {part.view for part in parts} == {3}


def test_alternation_is_counted_in_student_epochs(tiny: Sequence[str], tmp_path: Path) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert main(["train", *tiny, f"--output={teacher}"]) == 0
    learn = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}", "--method=disk"]
    rounds = [
        "--method.helper=teacher-pooled",
        "--method.student_epochs=1",
        "--method.helper_epochs=2",
        "--method.helper_warmup_epochs=1",
    ]
    assert main(["distill", *tiny, *learn, *rounds, "--train.epochs=3", f"--output={run}"]) == 0
    phases = dict.fromkeys((line["epoch"], line["phase"]) for line in lines(run))
    assert [phase for _, phase in phases] == [
        "helper",
        "student",
        "helper",
        "helper",
        "student",
        "helper",
        "helper",
        "student",
        "helper",
        "helper",
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["student_epochs"], summary["all_epochs"]) == (3, 10)
    assert [line["student_epochs"] for line in lines(run, "validation")] == [1, 2, 3]


def test_the_latest_that_is_as_good_as_the_best_is_kept(golden_run: Path) -> None:
    scores = {line["student_epochs"]: line["top1"] for line in lines(golden_run, "validation")}
    summary = json.loads((golden_run / "summary.json").read_text())
    within = max(scores.values()) - selection_margin(max(scores.values()), 126)
    assert summary["selected_epoch"] == max(number for number, top1 in scores.items() if top1 >= within)
    assert summary["validation"]["top1"] == scores[summary["selected_epoch"]]
    best, kept = load_file(golden_run / "best" / "student.safetensors"), load_file(golden_run / "student.safetensors")
    assert all(torch.equal(best[name], kept[name]) for name in kept)


def test_the_student_is_a_plain_timm_model(golden_run: Path) -> None:
    student = timm.create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    student.load_state_dict(load_file(golden_run / "student.safetensors"))


@pytest.mark.parametrize(
    "option",
    ["--train.precision=bf16", "--train.clip_grad=0.1", "--train.ema_decay=0.5", "--train.channels_last=true",
     "--train.optimizer=adamw", "--train.cycles=2", "--train.decay_norm_and_bias=false", "--data.validation=0"],
)  # fmt: skip
def test_each_option_trains_and_matters(option: str, golden_run: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([GOLDEN_RUN[0], *tiny, *GOLDEN_RUN[1:], option, f"--output={run}"]) == 0
    losses, plain = ([line["loss"] for line in lines(folder)] for folder in (run, golden_run))
    assert losses[0] > losses[-1]
    weights, usual = (load_file(folder / "student.safetensors") for folder in (run, golden_run))
    same = all(torch.equal(weights[name], usual[name]) for name in usual)
    assert losses == pytest.approx(plain, rel=1e-3) if "channels_last" in option else not same


def test_the_student_meets_every_view_whatever_the_rounds(
    tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher"
    assert main(["train", *tiny, f"--output={teacher}"]) == 0
    met: dict[int, int] = {}
    batches = Loader.batches

    def watched(self: Loader, *arguments: int, **options: int) -> Iterator[Batch]:
        for batch in batches(self, *arguments, **options):
            if options.get("view") is not None:
                met[arguments[0]] = batch.view
            yield batch

    monkeypatch.setattr(Loader, "batches", watched)
    learn = ["--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={teacher}", "--method=disk"]
    learn += ["--method.helper=teacher-pooled", "--method.helper_warmup_epochs=0", "--teacher.store=false"]
    learn += ["--method.student_epochs=1", "--method.helper_epochs=1"]
    assert main(["distill", *tiny, *learn, "--train.epochs=3", "--views=2", f"--output={tmp_path / 'run'}"]) == 0
    assert met == {0: 0, 1: 0, 2: 1, 3: 1, 4: 0, 5: 0}, "an epoch of the student and one of the helper in turn"


def test_seconds_since_the_last_line_of_the_log_are_saved_too(
    tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr("disk_kd.training.loop.save_checkpoint", lambda path, state: saved.append(state["position"]))
    once = ["--train.epochs=1", "--train.log_every=1000", "--train.checkpoint_every_s=0"]
    assert main(["train", *tiny, *once, f"--output={tmp_path / 'run'}"]) == 0
    seconds = [position["train_s"] for position in saved]
    assert len(seconds) > 4
    assert 0 < seconds[0] < seconds[1] < seconds[2]
