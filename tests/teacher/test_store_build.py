"""Building stored outputs: only what is missing, in one epoch, on from where a build was stopped."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from store_cases import (
    ALL,
    CLASSES,
    IDS,
    MANIFEST,
    STEPS,
    VIEWS,
    Net,
    SeededLoader,
    Stopped,
    build,
    content,
    stop,
    teacher,
)

from disk_kd.data import Augment, Loader, Split
from disk_kd.errors import CheckpointError, ConfigError, DataError, ModelError, RunError
from disk_kd.teacher import Teacher, TeacherStore
from disk_kd.teacher.encoding import Plain, TopK
from disk_kd.teacher.store_files import map_file, write_blank

WHOLE = [(view, step) for view in range(VIEWS) for step in range(STEPS)]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def build_and_be_killed(path: Path, **changes: Any) -> None:
    build(path, loader=SeededLoader(stop=(1, 2, kill)), **changes)


def views_told(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())["views"]


def test_progress_is_told_after_each_batch(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


def test_the_teacher_sees_each_batch_once_and_no_batch_of_a_whole_store(tmp_path: Path) -> None:
    for expected in (WHOLE, []):
        loader = SeededLoader()
        build(tmp_path, loader=loader)
        assert loader.given == expected


def test_more_views_are_added_and_fewer_are_read(tmp_path: Path) -> None:
    build(tmp_path / "one", views=1)
    before = content(tmp_path / "one")
    loader = SeededLoader()
    build(tmp_path / "one", loader=loader)
    assert loader.given == WHOLE[STEPS:]
    build(tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert before.items() <= content(tmp_path / "one").items()
    loader = SeededLoader()
    assert build(tmp_path / "one", loader=loader, views=2).views == 2
    assert loader.given == []


def test_more_outputs_are_added_and_only_they_are_computed(tmp_path: Path) -> None:
    build(tmp_path / "one", teacher(needs=("logits",)))
    logits = tmp_path / "one" / "logits.view1.npy"
    written_at = logits.stat().st_mtime_ns
    both = teacher(needs=("logits", "map"))
    both.model.fc.register_forward_hook(lambda *_: pytest.fail("the logits were computed again"))
    store = build(tmp_path / "one", both)
    assert both.needs == {"logits", "map"}
    assert store.read(torch.tensor(IDS), 0, "cpu").keys() == {"logits", "map"}
    assert logits.stat().st_mtime_ns == written_at
    build(tmp_path / "two", teacher(needs=("logits", "map")))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert store.errors() == TeacherStore.open(tmp_path / "two").errors()


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_stopped_build_goes_on_with_the_batch_it_was_at(tmp_path: Path, top_k: int | None) -> None:
    def stop_at_five(done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        build(tmp_path / "one", top_k=top_k, progress=stop_at_five)
    loader = SeededLoader()
    one = build(tmp_path / "one", loader=loader, top_k=top_k)
    assert loader.given == WHOLE[5:]
    two = build(tmp_path / "two", top_k=top_k)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.errors() == two.errors()
    assert not list(tmp_path.glob("one/*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_build_goes_on_and_holds_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=build_and_be_killed, args=(tmp_path / "one",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {path.name for path in tmp_path.glob("one/logits*")} == {"logits.view0.npy", "logits.view1.npy.part"}
    loader = SeededLoader()
    one = build(tmp_path / "one", loader=loader)
    assert loader.given == WHOLE[5:]
    assert one.errors() == build(tmp_path / "two").errors()
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_build_stopped_between_full_parts_and_their_names_makes_the_view_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: stop())
        with pytest.raises(Stopped):
            build(tmp_path, views=1)
    loader = SeededLoader()
    store = build(tmp_path, loader=loader, views=1)
    assert loader.given == [(0, 0), (0, 1), (0, 2)]
    assert not list(tmp_path.glob("*.part"))
    assert not store.read(torch.tensor(IDS), 0, "cpu")["logits"].isnan().any()
    assert store.errors()["1"]["max"] > 0


def test_a_build_for_another_method_takes_an_unfinished_output_along(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        build(tmp_path / "one", loader=SeededLoader(stop=(0, 2, stop)))
    loader = SeededLoader()
    one = build(tmp_path / "one", teacher(needs=ALL), loader)
    assert loader.given == WHOLE
    two = build(tmp_path / "two", teacher(needs=ALL))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.errors() == two.errors()


def test_another_batch_size_goes_on_at_its_own_step(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        build(tmp_path / "one", loader=SeededLoader(batch_size=3, stop=(0, 1, stop)))
    loader = SeededLoader(batch_size=2)
    build(tmp_path / "one", loader=loader, views=1)
    assert loader.given == [(0, 1), (0, 2), (0, 3)]
    build(tmp_path / "two", views=1)
    for first, second in zip(*(np.load(tmp_path / name / "logits.view0.npy") for name in ("one", "two")), strict=True):
        np.testing.assert_allclose(first["values"], second["values"], rtol=1e-3)


def test_the_time_of_all_stretches_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("disk_kd.teacher.store_build.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with pytest.raises(Stopped):
        build(tmp_path, loader=SeededLoader(stop=(0, 2, stop)), views=1)
    first = views_told(tmp_path)["0"]["build_s"]
    assert first > 0
    store = build(tmp_path, views=2)
    both = [views_told(tmp_path)[view]["build_s"] for view in ("0", "1")]
    assert both[0] > first
    assert store.build_s() == sum(both)


def test_a_long_build_saves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disk_kd.teacher.store_build._SAVE_EVERY_S", 0)
    saved: list[float] = []
    build(tmp_path, views=1, progress=lambda *_: saved.append(views_told(tmp_path)["0"]["build_s"]))
    assert 0 < saved[0] < saved[1] < saved[2]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    other, *own = (
        tmp_path / f"{of}.1.tmp" for of in ("logits.view1.npy.part", "logits.view0.npy.part", "manifest.json")
    )
    for file in (other, *own):
        file.write_bytes(b"half")
    build(tmp_path, views=1)
    assert list(tmp_path.glob("*.tmp")) == [other]  # a living process may be writing it just now
    build(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


class MeetingLoader(SeededLoader):
    """Waits before its first batch for `others`."""

    def __init__(self, others: threading.Barrier) -> None:
        super().__init__()
        self.others = others

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        if not self.given:
            self.others.wait(timeout=60)
        yield from super().batches(epoch, start)


def test_two_builders_share_the_views_and_meet_each_batch_once(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    loaders = [MeetingLoader(both), MeetingLoader(both)]
    told: list[list[tuple[int, int]]] = [[], []]
    with ThreadPoolExecutor(2) as pool:
        for loader, steps in zip(loaders, told, strict=True):
            pool.submit(build, tmp_path / "one", loader=loader, progress=lambda *now, steps=steps: steps.append(now))
    assert sorted(loaders[0].given + loaders[1].given) == WHOLE
    assert {len(loader.given) for loader in loaders} == {STEPS, 2 * STEPS}
    assert all(steps == sorted(set(steps)) for steps in told)
    assert max(told[0] + told[1]) <= (len(WHOLE), len(WHOLE))
    two = build(tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert TeacherStore.open(tmp_path / "one").errors() == two.errors()
    assert views_told(tmp_path / "one").keys() == views_told(tmp_path / "two").keys()


def test_of_two_builders_from_different_data_one_is_refused(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        manifests = [{**MANIFEST, "seed": seed} for seed in (0, 1)]
        builds = [pool.submit(build, tmp_path, loader=MeetingLoader(both), manifest=manifest) for manifest in manifests]
    (refused,) = [seed for seed in (0, 1) if builds[seed].exception()]
    with pytest.raises(CheckpointError, match=f"made with seed = {1 - refused}, this run has {refused}"):
        builds[refused].result()
    loader = SeededLoader()
    build(tmp_path, loader=loader, manifest=manifests[1 - refused])
    assert loader.given == []


def test_who_waited_for_a_view_of_other_data_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "done")
    begun = threading.Event()

    class Split:
        @property
        def ids(self) -> torch.Tensor:
            begun.set()
            return torch.tensor(IDS)

    loader = SeededLoader()
    loader.split = Split()
    (tmp_path / "new").mkdir()
    with ThreadPoolExecutor(1) as pool:
        with ExitStack() as locks:
            for view in range(VIEWS):
                locks.enter_context(FileLock(tmp_path / "new" / f"view{view}.lock"))
            waiting = pool.submit(build, tmp_path / "new", loader=loader, manifest={**MANIFEST, "seed": 1})
            assert begun.wait(timeout=60)
            for name in ("manifest.json", *content(tmp_path / "done")):
                shutil.copy(tmp_path / "done" / name, tmp_path / "new")
        with pytest.raises(CheckpointError, match="made with seed = 0, this run has 1"):
            waiting.result(timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_view_of_a_builder_that_dies_is_finished_by_who_waits_for_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def hang() -> None:
        begun.set()
        time.sleep(600)

    other = context.Process(target=build, args=(tmp_path / "one",), kwargs={"loader": SeededLoader(stop=(0, 2, hang))})
    other.start()
    assert begun.wait(timeout=60)
    loader = SeededLoader()
    timer = threading.Timer(0.5, other.kill)
    one = build(tmp_path / "one", loader=loader, progress=lambda done, _: timer.start() if done == 2 * STEPS else None)
    other.join()
    assert loader.given == [*WHOLE[STEPS:], WHOLE[2]]
    assert one.errors() == build(tmp_path / "two").errors()
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert {about["by"] for about in views_told(tmp_path / "one").values()} == {f"{platform.node()}:{os.getpid()}"}


def test_a_whole_store_needs_no_lock(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "lock").unlink(missing_ok=True)
    (tmp_path / "lock").mkdir()
    build(tmp_path)
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 1"):
        build(tmp_path, manifest={**MANIFEST, "seed": 1})


def test_the_loader_of_the_package_fills_a_store(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.zeros(40, dtype=torch.int64), ("a",), torch.arange(40)).subset(range(1, 40, 2))
    options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "augment": Augment(crop_padding=1), "views": 2}
    plain = Loader(split, batch_size=6, shuffle=False, drop_last=False, group=12, **options)
    with pytest.raises(Stopped):
        build(tmp_path, loader=plain, samples=40, views=2, progress=lambda done, _: stop() if done == 3 else None)
    store = build(tmp_path, loader=plain, samples=40, views=2)
    live = teacher()
    shuffled = Loader(split, batch_size=7, drop_last=False, **options)
    for epoch in range(3):
        for batch in shuffled.batches(epoch):
            stored = store.read(batch.ids, batch.view, "cpu")["logits"]
            true = live(batch.images)["logits"]
            precision = 2**-10 * (true.amax() - true.amin()).item()
            torch.testing.assert_close(stored, true, rtol=0, atol=precision)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest": {**MANIFEST, "data": "abd"}}, "made with data = abc, this run has abd"),
        ({"manifest": {**MANIFEST, "augment": {"crop": 2}}}, "made with augment.crop = 4, this run has 2"),
        ({"manifest": {"data": "abc", "augment": MANIFEST["augment"]}}, "made with seed = 0, this run has None"),
        ({"manifest": {**MANIFEST, "policy": "x"}}, "made with policy = None, this run has x"),
        ({"samples": 11}, "made with samples = 10, this run has 11"),
        ({"top_k": 2}, "made with top_k = None, this run has 2"),
        (
            {"of": Teacher(Net(), input_mean=(0.5,) * 3, input_std=(0.25,) * 3, precision="bf16")},
            "made with precision = fp32, this run has bf16",
        ),
        ({"of": teacher(scale=2)}, "made with teacher_sha256 = [0-9a-f]{64}, this run has [0-9a-f]{64}; delete it"),
        (
            {"of": Teacher(Net(), input_mean=(0.4,) * 3, input_std=(0.25,) * 3)},
            r"made with input_mean = \[0.5, 0.5, 0.5\], this run has \[0.4, 0.4, 0.4\]",
        ),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    build(tmp_path)
    for views in (VIEWS, VIEWS + 1):
        with pytest.raises(CheckpointError, match=message):
            build(tmp_path, views=views, **changes)


def test_a_stopped_build_of_something_else_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        build(tmp_path, loader=SeededLoader(stop=(0, 1, stop)))
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 1; delete it or give another path"):
        build(tmp_path, manifest={**MANIFEST, "seed": 1})


@pytest.mark.parametrize("top_k", [-1, 0, CLASSES, CLASSES + 1])
def test_as_many_logits_as_there_are_classes_are_refused(tmp_path: Path, top_k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k is expected from 1 to 4 for 5 classes, got {top_k}"):
        build(tmp_path, top_k=top_k)
    build(tmp_path)  # nothing is left that would stand in the way


@pytest.mark.parametrize("encoding", [Plain((2, 3)), TopK(9, 4)])
def test_a_file_of_more_than_one_block_is_blank_throughout(tmp_path: Path, encoding: Any) -> None:
    write_blank(tmp_path / "a.npy", encoding, 2100)
    array = map_file(tmp_path / "a.npy", encoding, 2100)
    values = array if array.dtype.names is None else array["values"]
    assert len(values) == 2100
    assert np.isnan(values).all()


def test_a_sample_outside_the_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sample id 9 has no row in a teacher store of 9 samples"):
        build(tmp_path, samples=9)


def test_a_loader_that_does_not_make_the_views_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epoch 2 of the loader has view 0; give it as many views as the store"):
        build(tmp_path, loader=SeededLoader(views=2))


def test_a_loader_of_another_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"step 0 of the loader is not in the split's order; .* shuffle=False"):
        build(tmp_path, loader=SeededLoader(shuffle=True))
    loader = SeededLoader()
    loader.steps_per_epoch = 2
    with pytest.raises(ConfigError, match=r"leaves out the last samples of an epoch; .* drop_last=False"):
        build(tmp_path, loader=loader)


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    loader = SeededLoader()
    loader.split.ids = torch.tensor([], dtype=torch.int64)
    with pytest.raises(DataError, match="no samples to store"):
        build(tmp_path, loader=loader)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_teacher_that_is_not_finite_is_refused(tmp_path: Path, top_k: int | None, value: str) -> None:
    broken = teacher()
    broken.model.fc.bias.data[1] = float(value)
    with pytest.raises(ModelError, match="the teacher's logits are not finite for sample 7"):
        build(tmp_path, broken, top_k=top_k)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"no folder for a teacher store at .*file"):
        build(tmp_path / "file")


def test_a_disk_without_room_is_told_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunError, match=rf"cannot write view 0 of .* 0 MiB: {os.strerror(errno.EFBIG)}; make room"):
            build(tmp_path, samples=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*.npy*"))
    build(tmp_path, samples=10_000)
