from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from disk_kd.data.dataset import Dataset
from disk_kd.data.split import Split
from disk_kd.errors import DataError


def make_split(count: int = 6, channels: int = 3, side: int = 4, classes: int = 3) -> Split:
    images = torch.arange(count * channels * side * side).remainder(251).to(torch.uint8)
    return Split(
        images.view(count, channels, side, side),
        torch.arange(count) % classes,
        tuple(f"class {label}" for label in range(classes)),
        torch.arange(count) + 100,
        tuple(f"{i}.png" for i in range(count)),
    )


def test_subset_keeps_ids_and_paths():
    part = make_split().subset([4, 1])
    assert len(part) == 2
    assert part.ids.tolist() == [104, 101]
    assert part.targets.tolist() == [1, 1]
    assert part.paths == ("4.png", "1.png")
    assert torch.equal(part.images, make_split().images[[4, 1]])
    assert part.subset(torch.tensor([1])).ids.tolist() == [101]


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, GPU])])
def test_to_moves_every_tensor_and_changes_nothing(device: str):
    moved = make_split().to(device)
    assert {part.device.type for part in (moved.images, moved.targets, moved.ids)} == {device}
    assert moved.paths == make_split().paths
    assert moved.fingerprint() == make_split().fingerprint()
    assert moved.subset([2]).ids.tolist() == [102]


def test_fingerprint_tells_apart_what_differs():
    split = make_split()
    pixels, targets, ids = split.images.clone(), split.targets.clone(), split.ids.clone()
    pixels[5, 0, 0, 0] += 1
    targets[5] = 0
    ids[5] = 0
    others = [
        replace(split, images=pixels),
        replace(split, targets=targets),
        replace(split, ids=ids),
        replace(split, class_names=("class 0", "class 1", "class two")),
        replace(split, images=split.images.view(6, 1, 6, 8)),
        split.subset([1, 0, 2, 3, 4, 5]),
    ]
    prints = {split.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(prints) == 1 + len(others)
    assert make_split().fingerprint() == split.fingerprint()
    assert replace(split, paths=None).fingerprint() == split.fingerprint()


def test_image_fingerprint_is_of_images_and_ids_alone():
    split = make_split()
    relabelled = replace(split, targets=(split.targets + 1) % len(split.class_names))
    assert relabelled.fingerprint() != split.fingerprint()
    assert relabelled.image_fingerprint() == split.image_fingerprint() != split.fingerprint()
    others = (replace(split, images=split.images ^ 1), replace(split, ids=split.ids + 1))
    assert len({other.image_fingerprint() for other in (split, *others)}) == 3


def test_fingerprint_is_frozen():
    assert make_split().fingerprint().startswith("80febaf3084ccb47")


def test_mean_std_of_channels():
    images = torch.randint(0, 256, (1500, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.zeros(1500, dtype=torch.int64), ("a",), torch.arange(1500))
    mean, std = split.mean_std()
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_repr_is_short():
    assert repr(make_split()) == "Split(6 images of 3x4x4, 3 classes, cpu)"


def test_wrong_images_are_refused():
    split = make_split()
    with pytest.raises(DataError, match=r"contiguous uint8 \(N, C, H, W\), got torch.float32 \(6, 3, 4, 4\)"):
        replace(split, images=split.images.float())
    with pytest.raises(DataError, match=r"got torch.uint8 \(3, 4, 4\)"):
        replace(split, images=split.images[0])
    with pytest.raises(DataError, match="contiguous"):
        replace(split, images=split.images.transpose(2, 3))


def test_lengths_and_labels_must_fit():
    split = make_split()
    with pytest.raises(DataError, match="expected in equal number, got"):
        replace(split, targets=split.targets[:5])
    with pytest.raises(DataError, match="labels are expected in 0 … 1 for 2 classes, got 0 … 2"):
        replace(split, class_names=("a", "b"))


def test_dataset_describes_itself():
    dataset = Dataset("toy", make_split(), None, make_split(3))
    assert (dataset.num_classes, dataset.in_chans, dataset.image_size) == (3, 3, 4)
    assert dataset.class_names == ("class 0", "class 1", "class 2")


def test_dataset_refuses_splits_that_do_not_fit():
    train = make_split()
    with pytest.raises(DataError, match="toy: the test split has other classes than the training split"):
        Dataset("toy", train, None, make_split(classes=4))
    with pytest.raises(DataError, match=r"toy: validation images are 3x5x5, train 3x4x4; give data.image_size"):
        Dataset("toy", train, make_split(side=5), None)
    with pytest.raises(DataError, match=r"toy: square images are needed, got 8x6; give data.image_size"):
        Dataset("toy", replace(train, images=train.images.view(6, 1, 6, 8)), None, None)
