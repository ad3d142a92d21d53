"""Stored teacher outputs: equal to the teacher's own, resumable, refused when they are of something else."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import disk_kd.teacher.store as store_module
from disk_kd.errors import CheckpointError, ConfigError, DataError, ModelError, RunError
from disk_kd.teacher import Teacher, TeacherStore, store_bytes, teacher_facts

IDS = [7, 0, 3, 9, 4, 1, 8]
"""A split of seven samples out of ten: 2, 5 and 6 are in the validation split."""
VIEWS, SAMPLES, CLASSES = 3, 10, 5
MANIFEST = {"data": "abc", "augment": {"crop": 4, "flip": True}, "seed": 0}


class Batch(NamedTuple):
    images: Tensor
    targets: Tensor
    ids: Tensor
    view: int


class Stopped(Exception):
    """What stands for a kill."""


class SeededLoader:
    """Noise that depends on sample and view alone, in any order and batch size."""

    def __init__(self, batch_size: int = 3, views: int = VIEWS, shuffle: bool = False, stop: Any = None) -> None:
        self.batch_size, self.views, self.shuffle, self.stop = batch_size, views, shuffle, stop
        self.passes: list[int] = []
        self.steps_per_pass = -(-len(IDS) // batch_size)

    def batches(self, pass_index: int) -> Iterator[Batch]:
        self.passes.append(pass_index)
        view = pass_index % self.views
        ids = IDS[::-1] if self.shuffle else IDS
        for step, start in enumerate(range(0, len(ids), self.batch_size)):
            if self.stop and self.stop[:2] == (view, step):
                self.stop[2]()
            rows = ids[start : start + self.batch_size]
            images = torch.stack([self.image(row, view) for row in rows])
            yield Batch(images, torch.zeros(len(rows)), torch.tensor(rows), view)

    @staticmethod
    def image(sample: int, view: int) -> Tensor:
        return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(100 * view + sample))


class Net(nn.Module):
    """A teacher whose outputs are known: seeded weights, logits scaled by `scale`."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_classes = CLASSES
        self.feature_info = [{"num_chs": 4, "module": "conv"}, {"num_chs": 4, "module": "act"}]
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, CLASSES)
        for parameter in self.parameters():
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def teacher(scale: float = 1.0, needs: tuple[str, ...] = ("logits",)) -> Teacher:
    return Teacher(Net(scale), input_mean=(0.5,) * 3, input_std=(0.25,) * 3, needs=needs)


def build(path: Path, of: Teacher | None = None, loader: SeededLoader | None = None, **changes: Any) -> TeacherStore:
    options = {"views": VIEWS, "samples": SAMPLES, "manifest": MANIFEST, **changes}
    return TeacherStore.build(path, of or teacher(), loader or SeededLoader(), **options)


def stop() -> None:
    raise Stopped


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def build_and_be_killed(path: Path) -> None:
    build(path, loader=SeededLoader(stop=(1, 1, kill)))


@pytest.mark.parametrize("needs", [("logits",), ("logits", "pooled", "map")])
@pytest.mark.parametrize("preloaded", [False, True])
def test_another_order_meets_the_teachers_own_outputs(tmp_path: Path, needs: tuple[str, ...], preloaded: bool) -> None:
    store = build(tmp_path / "store", teacher(needs=needs))
    assert store.preload("cpu") if preloaded else True
    live = teacher(needs=needs)
    for view in range(VIEWS):
        for batch in SeededLoader(batch_size=4, shuffle=True).batches(view):
            stored, expected = store.read(batch.ids, batch.view, "cpu"), live(batch.images)
            assert stored.keys() == set(needs)
            for name, output in expected.items():
                assert stored[name].dtype == torch.float32
                torch.testing.assert_close(stored[name], output, rtol=2**-11, atol=1e-6)


def test_views_differ(tmp_path: Path) -> None:
    store = build(tmp_path)
    ids = torch.tensor(IDS)
    assert not torch.equal(store.read(ids, 0, "cpu")["logits"], store.read(ids, 1, "cpu")["logits"])


def test_logits_too_large_for_half_precision_are_clamped(tmp_path: Path) -> None:
    logits = build(tmp_path, teacher(scale=1e3)).read(torch.tensor(IDS), 0, "cpu")["logits"]
    assert logits.abs().max() == 65504
    assert logits.isfinite().all()


def test_a_sample_that_was_not_stored_reads_as_nan(tmp_path: Path) -> None:
    logits = build(tmp_path).read(torch.tensor([2, 7]), 0, "cpu")["logits"]
    assert logits[0].isnan().all()
    assert not logits[1].isnan().any()


def test_progress_is_told_after_each_batch(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


def test_a_whole_store_is_not_built_again(tmp_path: Path) -> None:
    build(tmp_path)
    loader = SeededLoader()
    build(tmp_path, loader=loader)
    assert loader.passes == []


def test_a_stopped_build_goes_on_with_the_view_it_was_in(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        build(tmp_path / "one", loader=SeededLoader(stop=(1, 2, stop)))
    with pytest.raises(CheckpointError, match="has 1 of 3 views; build it again"):
        TeacherStore.open(tmp_path / "one")
    loader = SeededLoader()
    build(tmp_path / "one", loader=loader)
    assert loader.passes == [1, 2]
    build(tmp_path / "two")
    assert (tmp_path / "one" / "logits.npy").read_bytes() == (tmp_path / "two" / "logits.npy").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_build_goes_on_and_holds_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=build_and_be_killed, args=(tmp_path / "one",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["views_finished"] == 1
    loader = SeededLoader()
    build(tmp_path / "one", loader=loader)
    assert loader.passes == [1, 2]
    build(tmp_path / "two")
    assert (tmp_path / "one" / "logits.npy").read_bytes() == (tmp_path / "two" / "logits.npy").read_bytes()


def test_two_builders_do_the_work_once(tmp_path: Path) -> None:
    loaders = [SeededLoader(), SeededLoader()]
    threads = [threading.Thread(target=build, args=(tmp_path,), kwargs={"loader": loader}) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The one that works takes its first pass twice: once to learn the shapes.
    assert sorted(loader.passes for loader in loaders) == [[], [0, 0, 1, 2]]
    assert not TeacherStore.open(tmp_path).read(torch.tensor(IDS), 2, "cpu")["logits"].isnan().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest": {**MANIFEST, "data": "abd"}}, "made with data = abc, this run has abd"),
        ({"manifest": {**MANIFEST, "augment": {"crop": 2}}}, "made with augment.crop = 4, this run has 2"),
        ({"manifest": {"data": "abc", "augment": MANIFEST["augment"]}}, "made with seed = 0, this run has None"),
        ({"manifest": {**MANIFEST, "policy": "x"}}, "made with policy = None, this run has x"),
        ({"views": 2}, "made with views = 3, this run has 2"),
        ({"samples": 11}, "made with samples = 10, this run has 11"),
        ({"of": teacher(needs=("logits", "map"))}, r"made with needs = \['logits'\], this run has \['logits', 'map'\]"),
        ({"of": teacher(scale=2)}, "made with teacher_sha256 = [0-9a-f]{64}, this run has [0-9a-f]{64}; delete it"),
        (
            {"of": Teacher(Net(), input_mean=(0.4,) * 3, input_std=(0.25,) * 3)},
            r"made with input_mean = \[0.5, 0.5, 0.5\], this run has \[0.4, 0.4, 0.4\]",
        ),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    build(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        build(tmp_path, **changes)


def test_a_stopped_build_of_something_else_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        build(tmp_path, loader=SeededLoader(stop=(1, 0, stop)))
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 1; delete it or give another path"):
        build(tmp_path, manifest={**MANIFEST, "seed": 1})


def test_opening_checks_the_facts_it_is_given(tmp_path: Path) -> None:
    build(tmp_path)
    TeacherStore.open(tmp_path, {"seed": 0, "views": 3, **teacher_facts(teacher())})
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 5"):
        TeacherStore.open(tmp_path, {"seed": 5})
    with pytest.raises(CheckpointError, match="made with teacher_sha256"):
        TeacherStore.open(tmp_path, teacher_facts(teacher(scale=2)))


def test_a_method_reads_only_the_outputs_it_needs(tmp_path: Path) -> None:
    build(tmp_path, teacher(needs=("logits", "map")))
    store = TeacherStore.open(tmp_path, needs={"logits"})
    assert store.read(torch.tensor([0]), 0, "cpu").keys() == {"logits"}
    assert store.bytes_per_sample() == 2 * CLASSES
    with pytest.raises(CheckpointError, match="holds logits, map and not pooled, which this method needs"):
        TeacherStore.open(tmp_path, needs={"logits", "pooled"})


@pytest.mark.parametrize("view", [-1, 3])
def test_a_view_that_is_not_there_is_refused(tmp_path: Path, view: int) -> None:
    with pytest.raises(CheckpointError, match=rf"has views 0 to 2, the data asks for view {view}"):
        build(tmp_path).read(torch.tensor([0]), view, "cpu")


def test_a_store_larger_than_allowed_stays_on_disk(tmp_path: Path) -> None:
    store = build(tmp_path)
    size = VIEWS * SAMPLES * CLASSES * 2
    assert not store.preload("cpu", max_bytes=size - 1)
    assert store.preload("cpu", max_bytes=size)


def test_sizes_in_bytes_are_those_on_disk(tmp_path: Path) -> None:
    store = build(tmp_path, teacher(needs=("logits", "pooled", "map")))
    arrays = [np.load(path, mmap_mode="r") for path in tmp_path.glob("*.npy")]
    expected = store_bytes(SAMPLES, VIEWS, CLASSES, pooled=4, map_size=4 * 2 * 2)
    assert expected == sum(array.nbytes for array in arrays) == SAMPLES * VIEWS * store.bytes_per_sample()
    files = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert expected < files < expected + 1000


def test_an_array_of_more_than_one_block_is_blank_throughout(tmp_path: Path) -> None:
    store_module._write_blank(tmp_path / "a.npy", (3, 700, 2))
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (3, 700, 2)
    assert np.isnan(array).all()


def test_damage_is_told(tmp_path: Path) -> None:
    build(tmp_path)
    file = tmp_path / "logits.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"is damaged \(logits.npy: .*\); delete it"):
        TeacherStore.open(tmp_path)
    np.save(file, np.zeros((2, 2), np.float16))
    with pytest.raises(CheckpointError, match=r"logits.npy holds float16 \[2, 2\], not float16 \[3, 10, 5\]"):
        TeacherStore.open(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        build(tmp_path)


def test_a_sample_outside_the_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sample id 9 has no row in a teacher store of 9 samples"):
        build(tmp_path, samples=9)


def test_too_few_views_in_the_loader_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass 2 of the loader has view 0: it must make the store's 3 views"):
        build(tmp_path, loader=SeededLoader(views=2))


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    class Empty(SeededLoader):
        def batches(self, pass_index: int) -> Iterator[Batch]:
            return iter(())

    with pytest.raises(DataError, match="no samples to store"):
        build(tmp_path, loader=Empty())


def test_a_teacher_that_gives_nan_is_refused(tmp_path: Path) -> None:
    broken = teacher()
    broken.model.fc.bias.data[1] = float("nan")
    with pytest.raises(ModelError, match="the teacher's logits are NaN for sample 7"):
        build(tmp_path, broken)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"no folder for a teacher store at .*file"):
        build(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "logits.npy").symlink_to("/dev/full")
    with pytest.raises(RunError, match=rf"cannot write .* of 0 MiB: {os.strerror(errno.ENOSPC)}; make room"):
        build(tmp_path)
    assert not (tmp_path / "logits.npy").is_symlink()
    build(tmp_path)
