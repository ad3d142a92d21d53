"""Datasets of a user's own: what my_module:make_dataset may return, and that a run treats them as any other data."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.datasets import FakeData, ImageFolder

from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.data.own import OwnFiles
from disk_kd.errors import ConfigError, DataError

MODULE = """
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import IterableDataset, Subset
from torchvision.datasets import FakeData, ImageFolder


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 12, 12, 3), dtype=np.uint8)


class Colours:
    classes = ["red", "green", "blue"]

    def __init__(self, count, seed=0):
        self.pixels = pixels(count, seed)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, number):
        return Image.fromarray(self.pixels[number]), number % 3


def colours(root=None, image_size=None, split_seed=None):
    assert (root, image_size, split_seed) == (None, 8, 5)
    return {"train": Colours(60), "val": Colours(15, 1), "test": Colours(15, 2)}


def subset():
    return Subset(Colours(60), range(5, 50))


def named():
    return SimpleNamespace(train=([Image.fromarray(x) for x in pixels(12)], ["b", "a"] * 6), test=None)


def arrays():
    return pixels(30)[..., 0], torch.arange(30) % 3


def tensors():
    return torch.from_numpy(pixels(30)).permute(0, 3, 1, 2), [n % 3 for n in range(30)]


def partly():
    return [(x, None if n > 20 else n % 3) for n, x in enumerate(pixels(30))]


def folder(root):
    return ImageFolder(root)


def transformed():
    return [(torch.rand(3, 12, 12), 0)] * 9


def gaps():
    return [(x, 2 * n) for n, x in enumerate(pixels(9))]


def unknown():
    return {"train": Colours(30), "test": ([*pixels(3)], ["red", "pink", "blue"])}


def missing():
    return ["gone.png"] * 9, [0, 1, 2] * 3


def failing():
    raise KeyError("no such thing")


def number():
    return 3


def held_out():
    return {"test": Colours(9)}


def uneven():
    return pixels(9), [0, 1]


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


def stream():
    return Stream()


def broken():
    class Broken(Colours):
        def __getitem__(self, number):
            if number == 7:
                raise ValueError("bad record")
            return super().__getitem__(number)

    return Broken(30)


class Net(nn.Sequential):
    def __init__(self, num_classes, in_chans=3, width=4):
        super().__init__(
            *(nn.Conv2d(in_chans, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes)),
        )


class Blind(Net):
    # NaN for the images whose mean colour is bright

    def forward(self, x):
        return super().forward(x) + torch.where(x.mean((1, 2, 3)) > BRIGHT, torch.nan, 0.0)[:, None]


BRIGHT = 0.05
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_images.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("own_images", None)


def test_a_dataset_like_torchvisions(module: Path) -> None:
    options = {"image_size": 8, "split_seed": 5}
    data = load_dataset("own_images:colours", **options)
    assert data.class_names == ("red", "green", "blue")
    assert data.validation is not None
    assert data.test is not None
    assert [len(data.train), len(data.validation), len(data.test)] == [60, 15, 15]
    assert data.train.targets[:4].tolist() == [0, 1, 2, 0]
    streamed = load_dataset("own_images:colours", stream=True, workers=0, **options)
    rows = torch.arange(9)
    assert torch.equal(streamed.train.pictures(rows), data.train.pictures(rows))  # written without loss
    again = load_dataset("own_images:colours", stream=True, workers=2, **options)
    assert again.fingerprint() == streamed.fingerprint() != data.fingerprint()
    assert torch.equal(again.train.pictures(rows), data.train.pictures(rows))


def test_the_other_forms(module: Path) -> None:
    subset = load_dataset("own_images:subset", validation=0)
    assert (len(subset.train), subset.train.targets[:3].tolist()) == (45, [2, 0, 1])
    named = load_dataset("own_images:named", validation=0)
    assert (named.class_names, named.train.targets[:2].tolist(), named.test) == (("a", "b"), [1, 0], None)
    arrays = load_dataset("own_images:arrays", validation=0)
    assert (arrays.train.shape, arrays.class_names) == ((1, 12, 12), ("0", "1", "2"))
    tensors = load_dataset("own_images:tensors", validation=0)
    assert torch.equal(tensors.train.pictures(torch.arange(3))[:, 0], arrays.train.pictures(torch.arange(3))[:, 0])
    assert load_dataset("own_images:tensors", image_size=6).train.shape == (3, 6, 6)
    partly = load_dataset("own_images:partly", validation=0, unlabelled="rest")
    assert (len(partly.train), partly.train.unlabelled) == (30, 9)


def test_a_folder_of_torchvision_is_read_as_files(module: Path) -> None:
    for number in range(6):
        path = module / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        FakeData(6, (3, 10, 10))[number][0].save(path)
    options = {"root": module / "photos", "stream": True, "image_size": 8, "validation": 0, "workers": 0}
    data = load_dataset("own_images:folder", **options)
    own = ImageFolder(module / "photos")
    assert data.class_names == tuple(own.classes) == ("a", "b")
    assert data.train.paths == tuple(path for path, _ in own.samples)
    before = data.train.fingerprint()
    Path(own.samples[0][0]).touch()
    again = load_dataset(
        "own_images:folder", root=module / "photos", stream=True, image_size=8, validation=0, workers=0
    )
    assert again.train.fingerprint() != before


def test_what_is_no_dataset_is_refused_in_one_line(module: Path) -> None:
    for name, message in (
        ("transformed", "sample 0, .* cannot be read: it is a Tensor of torch.float32; a path, a PIL image or uint8"),
        ("gaps", "no training image has label 1, but one has 16; give classes too"),
        ("unknown", "test sample 1 has the class 'pink'; valid: red, green, blue"),
        ("partly", "train sample 21 has no label; give one, or data.unlabelled=rest"),
        ("missing", "gone.png, the first image of .* cannot be read: No such file"),
        ("failing", r"fails with the keywords none \(KeyError: 'no such thing', .*own_images.py, line \d+\)"),
        ("number", "train is a int without a length"),
        ("held_out", "gives no train split, but test"),
        ("uneven", "is a pair of ndarray and list"),
        ("stream", "train is a Stream without a length"),
        ("broken", r"sample 7 cannot be read \(ValueError: bad record, .*own_images.py, line \d+\)"),
    ):
        with pytest.raises(DataError, match=message) as raised:
            load_dataset(f"own_images:{name}")
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"takes no keyword root; add it to the function, or leave out data\.root"):
        load_dataset("own_images:subset", root=module)
    with pytest.raises(ConfigError, match="no dataset 'own_images:nothing'"):
        load_dataset("own_images:nothing")
    with pytest.raises(ConfigError, match="give a function that makes the dataset"):
        load_dataset("own_images:BRIGHT")


def test_the_files_can_be_copied_to_other_processes() -> None:
    files = OwnFiles([torch.zeros(3, 4, 4, dtype=torch.uint8)])
    assert pickle.loads(pickle.dumps(files))(0) == files(0)


def test_a_run_of_own_teacher_student_and_dataset(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.name=own_images:colours", "--data.image_size=8", "--data.split_seed=5", "--quiet"]
    short = [*data, "--train.epochs=1", "--train.batch_size=20"]
    assert main(["train", *short, "--student.name=own_images:Net", "--output=teacher"]) == 0
    teacher = ["--teacher.name=own_images:Net", "--teacher.weights=teacher", "--data.views=1"]
    stored = [*short, *teacher, "--teacher.store=true", "--student.name=own_images:Net", "--student.options={width: 2}"]
    assert main(["distill", *stored, "--output=student"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "student", "--json"]) == 0
    assert '"samples": 15' in capsys.readouterr().out
    assert main(["evaluate", "student/student.safetensors", "--json"]) == 2
    assert "names the data own_images:colours. A module is not imported only" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["true", "false"])
def test_an_image_that_a_teacher_gives_nan_for_is_named(
    store: str, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(load_net().state_dict(), "net.pth")
    run = ["distill", "--data.name=own_images:tensors", "--data.validation=0", "--train.batch_size=10", "--quiet"]
    stated = "--teacher.options={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    teacher = ["--teacher.name=own_images:Blind", "--teacher.weights=net.pth", stated, "--data.views=1"]
    student = ["--student.name=own_images:Net", "--train.epochs=1", f"--teacher.store={store}"]
    images = load_dataset("own_images:tensors", validation=0).train.pictures(torch.arange(30)).float() / 127.5 - 1
    means = images.mean((1, 2, 3))
    sys.modules["own_images"].BRIGHT = float(means.topk(2).values.mean())  # type: ignore[attr-defined]
    assert main([*run, *teacher, *student, "--output=run"]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"the teacher's logits are not finite for sample {int(means.argmax())}[,;]", error), error


def load_net() -> torch.nn.Module:
    from disk_kd.models import create_model

    return create_model("own_images:Net", num_classes=3)
