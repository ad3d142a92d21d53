"""Stored teacher outputs as they are read: equal to the teacher's own, as many as asked for, refused when others'."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from store_cases import ALL, CLASSES, IDS, SAMPLES, VIEWS, SeededLoader, Stopped, build, stop, teacher

from disk_kd.errors import CheckpointError
from disk_kd.teacher import TeacherStore, store_bytes, teacher_facts


@pytest.mark.parametrize("needs", [("logits",), ALL])
@pytest.mark.parametrize("loaded", [False, True])
def test_another_order_meets_the_teachers_own_outputs(tmp_path: Path, needs: tuple[str, ...], loaded: bool) -> None:
    store = build(tmp_path / "store", teacher(needs=needs))
    if loaded:
        store._load("cpu")
    live = teacher(needs=needs)
    for view in range(VIEWS):
        for batch in SeededLoader(batch_size=4, shuffle=True).batches(view):
            stored, expected = store.read(batch.ids, batch.view, "cpu"), live(batch.images)
            assert stored.keys() == set(needs)
            for name, output in expected.items():
                assert stored[name].dtype == torch.float32
                # Logits are stored as what they lie below the largest.
                spread = (output.amax() - output.amin()).item() if name == "logits" else 0.0
                torch.testing.assert_close(stored[name], output, rtol=2**-11, atol=1e-6 + 2**-11 * spread)


@pytest.mark.parametrize("loaded", [False, True])
def test_the_largest_logits_and_the_sum_of_the_others_are_the_teachers(tmp_path: Path, loaded: bool) -> None:
    store = build(tmp_path, top_k=2)
    if loaded:
        store._load("cpu")
    for batch in SeededLoader(batch_size=7).batches(1):
        expected = teacher()(batch.images)["logits"].softmax(1)
        read = store.read(batch.ids, 1, "cpu")["logits"].softmax(1)
        kept = expected.topk(2, dim=1).indices
        torch.testing.assert_close(read.gather(1, kept), expected.gather(1, kept), rtol=5e-3, atol=0)
        others = expected.scatter(1, kept, 0).sum(1, keepdim=True) / (CLASSES - 2)
        torch.testing.assert_close(
            read, others.expand_as(read).scatter(1, kept, read.gather(1, kept)), rtol=5e-3, atol=0
        )


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_errors_are_those_of_what_is_read(tmp_path: Path, top_k: int | None) -> None:
    store = build(tmp_path, top_k=top_k)
    kl: dict[float, list[torch.Tensor]] = {1: [], 2: [], 4: []}
    for view in range(VIEWS):
        for batch in SeededLoader().batches(view):
            true = teacher()(batch.images)["logits"].double()
            read = store.read(batch.ids, view, "cpu")["logits"].double()
            for t, found in kl.items():
                log_p, log_q = (true / t).log_softmax(1), (read / t).log_softmax(1)
                found.append((log_p.exp() * (log_p - log_q)).sum(1))
    for t, found in kl.items():
        told, all_kl = store.errors()[str(t)], torch.cat(found)
        assert told["mean"] == pytest.approx(all_kl.mean().item(), rel=0.02, abs=1e-11)
        assert told["max"] == pytest.approx(all_kl.max().item(), rel=0.02, abs=1e-11)
        assert told["max"] > 0
    assert TeacherStore.open(tmp_path, views=1).errors() != store.errors()


def test_errors_are_told_of_logits_alone(tmp_path: Path) -> None:
    assert build(tmp_path, teacher(needs=("map",))).errors() == {}


def test_views_differ(tmp_path: Path) -> None:
    store = build(tmp_path)
    ids = torch.tensor(IDS)
    assert not torch.equal(store.read(ids, 0, "cpu")["logits"], store.read(ids, 1, "cpu")["logits"])


def test_features_too_large_for_half_precision_are_clamped(tmp_path: Path) -> None:
    pooled = build(tmp_path, teacher(scale=1e5, needs=("pooled",))).read(torch.tensor(IDS), 0, "cpu")["pooled"]
    assert pooled.abs().max() == 65504
    assert pooled.isfinite().all()


def test_what_version_0_1_stored_is_read(tmp_path: Path) -> None:
    true = build(tmp_path).read(torch.tensor(IDS), 0, "cpu")["logits"]
    record = json.loads((tmp_path / "manifest.json").read_text())
    record["facts"]["dtype"] = "float16"
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    for view in range(VIEWS):
        rows = np.full((SAMPLES, CLASSES), np.nan, np.float16)
        rows[IDS] = true.numpy()
        np.save(tmp_path / f"logits.view{view}.npy", rows)
    read = TeacherStore.open(tmp_path).read(torch.tensor(IDS), 0, "cpu")["logits"]
    assert torch.equal(read, true.half().float())
    with pytest.raises(CheckpointError, match="made with dtype = float16, this run has float16 below"):
        build(tmp_path)


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_sample_that_was_not_stored_reads_as_nan(tmp_path: Path, top_k: int | None) -> None:
    logits = build(tmp_path, top_k=top_k).read(torch.tensor([2, 7]), 0, "cpu")["logits"]
    assert logits[0].isnan().all()
    assert not logits[1].isnan().any()


def test_opening_checks_the_facts_it_is_given(tmp_path: Path) -> None:
    build(tmp_path)
    TeacherStore.open(tmp_path, {"seed": 0, "samples": SAMPLES, **teacher_facts(teacher())})
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 5"):
        TeacherStore.open(tmp_path, {"seed": 5})
    with pytest.raises(CheckpointError, match="made with teacher_sha256"):
        TeacherStore.open(tmp_path, teacher_facts(teacher(scale=2)))


def test_a_run_reads_only_what_it_asks_for(tmp_path: Path) -> None:
    build(tmp_path, teacher(needs=("logits", "map")))
    store = TeacherStore.open(tmp_path, views=2, needs={"logits"})
    assert store.read(torch.tensor([0]), 1, "cpu").keys() == {"logits"}
    assert store.bytes_per_sample() == 2 * CLASSES + 4
    with pytest.raises(CheckpointError, match="has views 0 to 1, the data asks for view 2"):
        store.read(torch.tensor([0]), 2, "cpu")
    with pytest.raises(CheckpointError, match="holds logits, map and not pooled, which this run needs; build it"):
        TeacherStore.open(tmp_path, needs={"logits", "pooled"})


def test_without_a_wish_all_outputs_and_their_common_views_are_read(tmp_path: Path) -> None:
    build(tmp_path, teacher(needs=("logits",)), views=3)
    build(tmp_path, teacher(needs=("map",)), views=2)
    store = TeacherStore.open(tmp_path)
    assert store.views == 2
    assert store.read(torch.tensor([0]), 0, "cpu").keys() == {"logits", "map"}
    with pytest.raises(CheckpointError, match="has 2 of 3 views of logits, map; build it again to go on"):
        TeacherStore.open(tmp_path, views=3)


def test_what_is_missing_can_be_asked_without_a_teacher(tmp_path: Path) -> None:
    assert TeacherStore.missing(tmp_path, {"logits", "map"}, 3) == 6
    build(tmp_path, teacher(needs=("logits",)), views=2)
    assert TeacherStore.missing(tmp_path, {"logits", "map"}, 3) == 4
    assert TeacherStore.holds(tmp_path, {"logits"}, 2)
    assert not TeacherStore.holds(tmp_path, {"logits"}, 3)
    (tmp_path / "manifest.json").unlink()
    assert not TeacherStore.holds(tmp_path, {"logits"}, 2)


def test_an_unfinished_view_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        build(tmp_path, loader=SeededLoader(stop=(0, 1, stop)))
    with pytest.raises(CheckpointError, match="holds no finished view and not logits, which this run needs"):
        TeacherStore.open(tmp_path, needs={"logits"})
    with pytest.raises(CheckpointError, match="holds no finished view and not an output"):
        TeacherStore.open(tmp_path)


@pytest.mark.parametrize("view", [-1, 3])
def test_a_view_that_is_not_there_is_refused(tmp_path: Path, view: int) -> None:
    with pytest.raises(CheckpointError, match=rf"has views 0 to 2, the data asks for view {view}"):
        build(tmp_path).read(torch.tensor([0]), view, "cpu")


def test_the_processor_reads_the_files_themselves(tmp_path: Path) -> None:
    assert not build(tmp_path).preload("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("top_k", [None, 2])
def test_an_accelerator_reads_the_same_from_its_own_memory(tmp_path: Path, top_k: int | None) -> None:
    store = build(tmp_path, top_k=top_k)
    size = VIEWS * SAMPLES * store.bytes_per_sample()
    ids = torch.tensor(IDS)
    expected = store.read(ids, 1, "cpu")["logits"]
    assert not store.preload("cuda", max_bytes=size - 1)
    assert store.preload("cuda", max_bytes=size)
    assert torch.equal(store.read(ids.cuda(), 1, "cuda")["logits"].cpu(), expected)


@pytest.mark.parametrize("top_k", [None, 3])
def test_sizes_in_bytes_are_those_on_disk(tmp_path: Path, top_k: int | None) -> None:
    store = build(tmp_path, teacher(needs=ALL), top_k=top_k)
    arrays = [np.load(path, mmap_mode="r") for path in tmp_path.glob("*.npy")]
    expected = store_bytes(SAMPLES, VIEWS, CLASSES, pooled=4, map_size=4 * 2 * 2, top_k=top_k)
    assert expected == sum(array.nbytes for array in arrays) == SAMPLES * VIEWS * store.bytes_per_sample()
    files = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert expected < files < expected + 200 * len(arrays)


def test_sizes_count_what_is_stored() -> None:
    assert store_bytes(10, 3, 0, pooled=4, top_k=2) == 10 * 3 * 4 * 2
    assert store_bytes(10, 3, 1000, top_k=50) == 10 * 3 * (4 * 50 + 6)
    assert store_bytes(1, 1, 70_000, top_k=50) == 6 * 50 + 6


def test_an_array_on_disk_names_its_parts(tmp_path: Path) -> None:
    build(tmp_path, top_k=2)
    rows = np.load(tmp_path / "logits.view0.npy")
    assert rows.dtype.names == ("largest", "values", "classes", "rest")
    (batch,) = SeededLoader(batch_size=7).batches(0)
    logits = teacher()(batch.images)["logits"].numpy()
    for sample, z in zip(IDS, logits, strict=True):
        order = np.argsort(-z)
        assert rows[sample]["classes"].tolist() == order[:2].tolist()
        rest = math.log(np.exp(z[order[2:]]).sum())
        assert rows[sample]["largest"] == pytest.approx(z.max(), rel=1e-6)
        assert rows[sample]["rest"] == pytest.approx(rest - z.max(), rel=2**-11)


def test_damage_is_told(tmp_path: Path) -> None:
    build(tmp_path)
    file = tmp_path / "logits.view1.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"is damaged \(logits.view1.npy: .*\); delete it"):
        TeacherStore.open(tmp_path)
    np.save(file, np.zeros((2, 2), np.float16))
    with pytest.raises(CheckpointError, match=r"logits.view1.npy holds float16 \[2, 2\], not \[.*\] \[10\]"):
        build(tmp_path)
