from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from disk_kd.bench import BenchSettings
from disk_kd.bench.workbench import Workbench, made_split
from disk_kd.data import Augment


def test_noise_has_the_shape_asked_for() -> None:
    split = made_split(7, 8, 20)
    assert split.images.shape == (7, 3, 8, 8)
    assert len(split.class_names) == 20
    assert split.fingerprint() == made_split(7, 8, 20).fingerprint()


def test_augmentation_is_that_of_cifar_in_proportion(settings: BenchSettings, tmp_path: Path) -> None:
    bench = Workbench(replace(settings, image_size=32), torch.device("cpu"), tmp_path)
    assert bench.augment == Augment(crop_padding=4, flip=True, auto_augment="cifar10", cutout=16)


def test_students_are_equal_and_apart(bench: Workbench) -> None:
    one, other = bench.student(), bench.student(channels_last=False)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b
    assert one.training


def test_our_teacher_and_the_peers_are_the_same_model(bench: Workbench) -> None:
    images = next(bench.loader.batches(0)).images
    ours = bench.teacher("cifar_resnet10_xxs")(images)["logits"]
    torch.testing.assert_close(bench.plain_teacher("cifar_resnet10_xxs")(images), ours, rtol=1e-4, atol=1e-4)


def test_a_store_holds_what_the_teacher_says(bench: Workbench) -> None:
    store = bench.store("cifar_resnet10_xxs")
    for number in range(2):
        batch = next(bench.loader.batches(number))
        said = bench.teacher("cifar_resnet10_xxs")(batch.images)["logits"]
        stored = store.read(batch.ids, batch.view, bench.device)["logits"]
        torch.testing.assert_close(stored, said, rtol=1e-3, atol=1e-3)
