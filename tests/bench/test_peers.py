from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from disk_kd.bench import BenchSettings
from disk_kd.bench import peers as peers_module
from disk_kd.bench.peers import Peers, PILImages
from disk_kd.bench.workbench import Workbench


@pytest.fixture
def peers(bench: Workbench) -> Iterator[Peers]:
    made = Peers(bench)
    yield made
    made.close()


def test_images_come_as_torchvisions_cifar_gives_them() -> None:
    images = torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8)
    dataset = PILImages(images, torch.tensor([5, 6, 7]), lambda image: image)  # type: ignore[arg-type, return-value]
    image, target = dataset[1]
    assert isinstance(image, Image.Image)
    assert image.getpixel((2, 0)) == tuple(images[1, :, 0, 2].tolist())
    assert (target, len(dataset)) == (6, 3)


def test_a_square_of_our_size_is_painted_with_the_mean(peers: Peers) -> None:
    images = torch.stack([peers._dataset[n][0] for n in range(20)])
    assert images.shape[1:] == (3, 8, 8)
    painted = (images == 0).all(1).sum((1, 2))
    assert painted.min() >= 16  # half of the side: 4x4, and what else came out at the mean


@pytest.mark.parametrize("key", ["plain_ce", "timm", "timm_ours"])
def test_a_peer_counts_its_images(peers: Peers, key: str) -> None:
    case = next(case for case in peers.cases() if case.key == key)
    assert case.run() == 30
    assert case.run() == 30


def test_torchdistill_runs_where_it_is_installed(peers: Peers) -> None:
    pytest.importorskip("torchdistill")
    case = next(case for case in peers.cases() if case.key == "torchdistill")
    assert case.run() == 30
    assert case.run() == 30


def test_torchdistill_is_left_out_where_it_is_not(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "torchdistill_installed", lambda: False)
    assert [case.key for case in peers.cases()] == ["plain_ce", "timm", "timm_ours"]


def test_workers_stay_between_passes_and_end_at_the_close(settings: BenchSettings, tmp_path: Path) -> None:
    peers = Peers(Workbench(replace(settings, workers=1), torch.device("cpu"), tmp_path))
    case = peers.cases()[0]
    case.run()
    workers = list(peers._loader._iterator._workers)  # type: ignore[union-attr]
    case.run()
    assert peers._loader._iterator._workers == workers  # type: ignore[union-attr]
    assert workers[0].is_alive()
    peers.close()
    assert not workers[0].is_alive()
