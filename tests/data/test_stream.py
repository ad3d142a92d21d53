from __future__ import annotations

import io
import math
import multiprocessing
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter

from disk_kd.arguments import parse_run
from disk_kd.data import Augment, Loader, Mix, StreamedSplit, TimmAugment, load_dataset
from disk_kd.data.decode import Reading
from disk_kd.data.folders import class_samples
from disk_kd.data.loader import Batch
from disk_kd.data.stream import Stream
from disk_kd.errors import ConfigError, DataError

PLAIN = TimmAugment()
STRONG = TimmAugment(enabled=True, auto_augment="rand-m9-mstd0.5", reprob=0.5, remode="pixel")


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise, so that JPEG and scaling change little."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write_jpegs(root: Path, each: int = 5) -> Path:
    """Two classes in train and val: sizes mixed, one grey, one CMYK, one turned by EXIF."""
    number = 0
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for index in range(each):
                number += 1
                image = picture(number, (40 + 7 * index, 36 + 3 * number % 17))
                path, exif = root / part / label / f"{index}.jpg", Image.Exif()
                if index == 1:
                    image = image.convert("L")
                if index == 2:
                    image = image.convert("CMYK")
                if index == 3:
                    exif[0x0112] = 6  # turn by 90 degrees
                image.save(path, quality=95, exif=exif)
    return root


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jpegs(tmp_path_factory.mktemp("jpegs"))


def streamed(root: Path, timm: TimmAugment = PLAIN, workers: int = 0, **reading: object) -> StreamedSplit:
    samples = class_samples(root / "train")
    return replace(samples.stream(Reading(**({"image_size": 16} | reading)), workers=workers), timm=timm)  # type: ignore[arg-type]


def loader(split: StreamedSplit, **options: object) -> Loader:
    settings = {"batch_size": 4, "mean": (0.0,) * 3, "std": (1.0,) * 3, "augment": Augment(), "seed": 3}
    return Loader(split, **(settings | options))  # type: ignore[arg-type]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.ids, other.ids)
        assert one.view == other.view


def test_without_timm_pixels_are_those_of_memory(jpegs: Path):
    in_memory, stream = (load_dataset("folder", root=jpegs, image_size=16, stream=on) for on in (False, True))
    assert isinstance(stream.train, StreamedSplit)
    assert (stream.image_size, stream.in_chans, stream.class_names) == (16, 3, ("cat", "dog"))
    augment = Augment(crop_padding=2, flip=True)
    assert_equal(
        list(loader(stream.train, augment=augment).batches(1)),
        list(loader(in_memory.train, augment=augment).batches(1)),  # type: ignore[arg-type]
    )
    assert stream.validation is not None
    assert in_memory.validation is not None
    rows = torch.tensor([3, 0])
    assert torch.equal(stream.validation.pictures(rows), in_memory.validation.pictures(rows))
    assert stream.validation.paths == in_memory.validation.paths


def test_lighting_is_that_of_images_in_memory(jpegs: Path):
    in_memory, stream = (load_dataset("folder", root=jpegs, image_size=16, stream=on) for on in (False, True))
    augment = Augment(flip=True, lighting=0.1)
    lit = list(loader(stream.train, augment=augment).batches(1))  # type: ignore[arg-type]
    assert_equal(lit, list(loader(in_memory.train, augment=augment).batches(1)))  # type: ignore[arg-type]
    plain = next(loader(stream.train, augment=Augment(flip=True)).batches(1))  # type: ignore[arg-type]
    assert (lit[0].images - plain.images).std((2, 3)).max() < 1e-6
    assert (lit[0].images - plain.images).abs().amax((2, 3)).min() > 0


@pytest.mark.parametrize("strengths", [0.4, (0.4, 0.3, 0.2), (0.4, 0.4, 0.4, 0.2)], ids=str)
def test_color_jitter_is_timms(strengths: float | tuple[float, ...]):
    jitter = next(
        t
        for t in TimmAugment(enabled=True, color_jitter=strengths).transform(8).transforms
        if isinstance(t, ColorJitter)
    )
    given = (strengths,) * 3 if isinstance(strengths, float) else strengths
    ranges = [(1 - s, 1 + s) for s in given[:3]] + [(-s, s) for s in given[3:]]
    assert [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue][: len(ranges)] == ranges


def test_color_jitter_is_read_from_options_and_recipes(tmp_path: Path):
    on = ["--data.timm.enabled=true"]
    for given, expected in (("0.3", 0.3), ("[0.4,0.4,0.4,0.2]", (0.4, 0.4, 0.4, 0.2)), ("[1,1,1]", (1.0, 1.0, 1.0))):
        config = parse_run("distill", [*on, f"--data.timm.color_jitter={given}"])
        assert config.data.timm.color_jitter == expected
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(config.to_yaml())
        assert parse_run("distill", [str(recipe)]).data == config.data
        recipe.write_text(f"data: {{timm: {{enabled: true, color_jitter: {given}}}}}")
        assert parse_run("distill", [str(recipe)]).data == config.data


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_what_this_one_gives(jpegs: Path, workers: int):
    here, there = (loader(streamed(jpegs, STRONG, count)) for count in (0, workers))
    assert_equal(list(there.batches(0)), list(here.batches(0)))
    # The second pass is of the same, living processes.
    assert_equal(list(there.batches(1)), list(here.batches(1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_entered_late_goes_on_as_if_never_left(jpegs: Path, workers: int):
    whole = list(loader(streamed(jpegs, STRONG)).batches(2))
    late = loader(streamed(jpegs, STRONG, workers))
    next(late.batches(2))  # an epoch that was left early
    assert_equal(list(late.batches(2, start=1)), whole[1:])


def test_views_and_seeds_differ_and_views_come_round(jpegs: Path):
    of = loader(streamed(jpegs, STRONG), shuffle=False, views=2, augment_seed=0)
    first, second, again = (next(of.batches(number)) for number in range(3))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, second.images)
    other = next(loader(streamed(jpegs, STRONG), shuffle=False, views=2, augment_seed=1).batches(0))
    assert not torch.equal(first.images, other.images)


def test_a_subset_meets_the_same_pixels(jpegs: Path):
    split = streamed(jpegs, STRONG)
    whole = next(loader(split, shuffle=False, batch_size=10).batches(0))
    part = next(loader(split.subset([7, 2]), shuffle=False).batches(0))
    assert torch.equal(part.images, whole.images[[7, 2]])
    assert part.ids.tolist() == [7, 2]


def test_evaluation_is_not_augmented(jpegs: Path):
    plain = next(loader(streamed(jpegs), augment=None, shuffle=False).batches(0))
    assert_equal([next(loader(streamed(jpegs, STRONG), augment=None, shuffle=False).batches(0))], [plain])


def test_a_crop_sees_the_centre(jpegs: Path):
    dataset = load_dataset("folder", root=jpegs, image_size=16, crop_pct=0.5, stream=True)
    assert dataset.validation is not None
    path = Path(dataset.validation.paths[0])
    with Image.open(path) as image:
        side = min(image.size) / 2
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        expected = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC, box=box)
    got = dataset.validation.pictures(torch.tensor([0]))[0].permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - np.asarray(expected).astype(int)).max() <= 24  # another centre crop rounds its box
    whole = load_dataset("folder", root=jpegs, image_size=16, crop_pct=0.5, stream=False)
    assert whole.validation is not None
    assert torch.equal(whole.validation.pictures(torch.tensor([0]))[0].permute(1, 2, 0), torch.from_numpy(got))


def test_repeats_stand_side_by_side_in_views_of_their_own(jpegs: Path):
    timm = TimmAugment(enabled=True, repeats=2)
    batches = list(loader(streamed(jpegs, timm)).batches(0))
    ids = torch.cat([batch.ids for batch in batches])
    assert len(batches) == 2  # 10 samples, 4 a batch: as many steps as without
    assert torch.equal(ids[0::2], ids[1::2])
    assert len(ids[0::2].unique()) == 4
    images = torch.cat([batch.images for batch in batches])
    assert not torch.equal(images[0], images[1])
    following = torch.cat([batch.images for batch in loader(streamed(jpegs, timm), shuffle=False).batches(1)])
    assert len({image.numpy().tobytes() for image in following}) == len(following)


def test_ranks_share_the_batches_of_one(jpegs: Path):
    whole = list(loader(streamed(jpegs, STRONG)).batches(0))
    parts = [list(loader(streamed(jpegs, STRONG), rank=rank, ranks=2).batches(0)) for rank in range(2)]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images, torch.cat([one.images, other.images]))


def test_no_global_random_state_is_touched(jpegs: Path):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    for batch in loader(streamed(jpegs, STRONG), mix=Mix(mixup=0.2, cutmix=1.0)).batches(0):
        assert batch.targets.shape == (4, 2)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_erasing_paints_what_timm_paints(jpegs: Path):
    before = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    torch.manual_seed(0)
    random.seed(0)
    after = TimmAugment(enabled=True, reprob=1.0, remode="const").erase(before)
    mean = torch.tensor([124, 116, 104])  # of ImageNet
    painted = (after == mean[:, None, None]).all(0)
    assert 0 < painted.sum() < 32 * 32
    assert (after[:, ~painted] == 200).all()


def test_files_travel_to_other_processes(jpegs: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(jpegs / "train", arcname=".")
    for samples in (class_samples(jpegs / "train"), class_samples(tmp_path / "x.tar")):
        assert samples.files is not None
        content = samples.files(4)
        copied = pickle.loads(pickle.dumps(samples.files))
        assert copied(4) == content
        assert samples.files.stamp(4).split()[0] == str(len(content))


def damage(root: Path) -> tuple[Path, Path]:
    truncated, empty = root / "train" / "cat" / "0.jpg", root / "train" / "dog" / "4.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    empty.write_bytes(b"")
    return truncated, empty


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_named(tmp_path: Path, workers: int):
    truncated, empty = damage(write_jpegs(tmp_path))
    with pytest.raises(DataError, match=rf"{truncated} cannot be read as an image: .*data.skip_unreadable=true"):
        list(loader(streamed(tmp_path, workers=workers), shuffle=False).batches(0))
    with pytest.raises(DataError, match=rf"{empty} cannot be read as an image: it is empty; replace it"):
        list(loader(streamed(tmp_path, workers=workers).subset([9]), shuffle=False).batches(0))
    with pytest.raises(DataError, match=rf"{truncated} cannot be read as an image"):
        load_dataset("folder", root=tmp_path, image_size=16, stream=False)


def test_damaged_files_are_left_out_on_demand(tmp_path: Path):
    truncated, empty = damage(write_jpegs(tmp_path))
    split = streamed(tmp_path, STRONG, skip_unreadable=True)
    with pytest.warns(UserWarning, match=f"left out: {truncated}"):
        trained = list(loader(split, shuffle=False, batch_size=5).batches(0))
    # The next file stands in, with its label.
    assert torch.cat([batch.ids for batch in trained]).tolist() == list(range(10))
    assert torch.cat([batch.targets for batch in trained]).tolist() == [0] * 5 + [1] * 4 + [0]
    with pytest.warns(UserWarning, match=f"left out: {truncated}"):
        plain = list(loader(replace(split, timm=PLAIN), shuffle=False, batch_size=5).batches(0))
    assert torch.equal(plain[0].images[0], plain[0].images[1])
    with pytest.warns(UserWarning, match=f"left out: {empty}"):
        evaluated = list(loader(split, augment=None, shuffle=False, drop_last=False).batches(0))
    assert torch.cat([batch.ids for batch in evaluated]).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.warns(UserWarning, match="left out"):
        dataset = load_dataset("folder", root=tmp_path, image_size=16, stream=False, skip_unreadable=True)
    assert dataset.train.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert dataset.train.targets.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_pictures_of_unreadable_files_are_black(tmp_path: Path):
    damage(write_jpegs(tmp_path))
    split = streamed(tmp_path, skip_unreadable=True)
    with pytest.warns(UserWarning, match="left out"):
        pictures = split.pictures(torch.tensor([9, 1, 0, 2]))
    assert torch.equal(pictures[[1, 3]], split.pictures(torch.tensor([1, 2])))
    with pytest.warns(UserWarning, match="left out"):
        alone = split.pictures(torch.tensor([9]))
    assert torch.equal(alone, torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert torch.equal(pictures[[0, 2]], alone.expand(2, -1, -1, -1))


def test_no_file_stands_in_where_none_is_asked_for(tmp_path: Path):
    truncated, _ = damage(write_jpegs(tmp_path))
    split = streamed(tmp_path, STRONG, skip_unreadable=True)
    options = {"shuffle": False, "drop_last": False, "stand_in": False}
    with pytest.warns(UserWarning, match=f"left out: {truncated}"):
        batches = list(loader(split, **options).batches(0))
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(1, 9))
    assert_equal(batches[1:2], list(loader(split.subset([4, 5, 6, 7]), **options).batches(0)))


DIES = """
import multiprocessing, os, signal, sys
from pathlib import Path
import torch
from disk_kd.data.decode import Reading
from disk_kd.data.folders import class_samples
from disk_kd.data.stream import Stream, workers_watched
from disk_kd.errors import DataError

split = class_samples(Path(sys.argv[1])).stream(Reading(16), workers=1)
batches = Stream(split, train=True, seed=0).groups([torch.tensor([0])] * 1000, 0)
try:
    with workers_watched():
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        list(batches)
except DataError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_process_that_died_is_told(jpegs: Path):
    """In a process of its own: torch raises at any later signal of a child, too."""
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(jpegs / "train")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("a worker process that decodes images ended ("), done.stderr
    assert done.stdout.endswith("if memory is short, lower data.workers\n")


DECODES = """
import multiprocessing, sys, time
from pathlib import Path
import torch
from disk_kd.data.decode import Reading
from disk_kd.data.folders import class_samples
from disk_kd.data.stream import Stream

split = class_samples(Path(sys.argv[1])).stream(Reading(16), workers=2)
batches = Stream(split, train=True, seed=0).groups([torch.tensor([0])] * 1000, 0)
next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


def test_processes_end_with_the_one_that_started_them(jpegs: Path):
    with subprocess.Popen([sys.executable, "-c", DECODES, str(jpegs / "train")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=3)  # torch looks every 5 s, and not at all while it hands over
    assert not alive


def test_processes_are_started_as_the_platform_does(jpegs: Path, monkeypatch: pytest.MonkeyPatch):
    """Also by a run of a comparison, which is spawned itself and would spawn, by Python's rule."""
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    stream = Stream(streamed(jpegs, workers=1), train=True, seed=0)
    assert stream._loader.multiprocessing_context.get_start_method() == multiprocessing.get_all_start_methods()[0]


def test_too_little_shared_memory_is_told(jpegs: Path, monkeypatch: pytest.MonkeyPatch):
    def full(images: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(DataError, match=r"^the shared memory \(/dev/shm\) is too small .*lower data.workers, or give"):
        list(loader(streamed(jpegs, workers=1)).batches(0))


def test_the_image_fingerprint_tells_files_not_labels(jpegs: Path, tmp_path: Path):
    split = streamed(jpegs)
    relabelled = replace(split, targets=split.targets.flip(0))
    assert relabelled.fingerprint() != split.fingerprint()
    assert relabelled.image_fingerprint() == split.image_fingerprint()
    assert len({other.image_fingerprint() for other in (split, streamed(jpegs, crop_pct=0.5), split.subset([1]))}) == 3


def test_the_fingerprint_tells_files_and_settings(jpegs: Path, tmp_path: Path):
    split = streamed(jpegs)
    moved = streamed(Path(shutil.copytree(jpegs, tmp_path / "moved")))
    assert split.fingerprint() == streamed(jpegs).fingerprint() == moved.fingerprint()
    others = [streamed(jpegs, image_size=8), split.subset([1, 0]), replace(split, targets=1 - split.targets)]
    damage(tmp_path / "moved")
    others.append(streamed(tmp_path / "moved"))
    assert len({other.fingerprint() for other in (split, *others)}) == 5


@pytest.mark.parametrize("packed", [False, True])
def test_the_fingerprint_tells_other_content_of_the_same_size(jpegs: Path, tmp_path: Path, packed: bool):
    root = Path(shutil.copytree(jpegs, tmp_path / "x"))
    file = root / "train" / "cat" / "0.jpg"

    def fingerprint() -> str:
        samples = class_samples(pack_train(root) if packed else root / "train")
        return samples.stream(Reading(16)).fingerprint()

    before = fingerprint()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\0")
    assert fingerprint() != before


def pack_train(root: Path) -> Path:
    with tarfile.open(root / "train.tar", "w") as tar:
        tar.add(root / "train", arcname=".")
    return root / "train.tar"


def test_the_fingerprint_of_a_dataset_tells_each_split(jpegs: Path, tmp_path: Path):
    def fingerprint(root: Path, **options: object) -> str:
        return load_dataset("folder", root=root, image_size=16, **options).fingerprint()  # type: ignore[arg-type]

    root = Path(shutil.copytree(jpegs, tmp_path / "x"))
    memory, stream = fingerprint(root, stream=False), fingerprint(root, stream=True)
    assert (memory, stream) == (fingerprint(jpegs, stream=False), fingerprint(jpegs, stream=True))
    picture(99, (40, 40)).save(root / "val" / "dog" / "0.jpg")
    assert memory != fingerprint(root, stream=False)
    assert stream != fingerprint(root, stream=True)


def test_a_missing_file_is_told_before_it_is_read_or_left_out(tmp_path: Path):
    write_jpegs(tmp_path)
    (tmp_path / "train" / "cat" / "zz.jpg").symlink_to("/nowhere/x.jpg")
    with pytest.raises(DataError, match=r"cat/zz\.jpg cannot be read: No such file or directory; replace it, or give"):
        streamed(tmp_path).fingerprint()
    split = streamed(tmp_path, skip_unreadable=True)
    assert split.fingerprint() == streamed(tmp_path, skip_unreadable=True).fingerprint()


def test_when_files_are_streamed(jpegs: Path, monkeypatch: pytest.MonkeyPatch):
    def kind(**options: object) -> type:
        return type(load_dataset("folder", root=jpegs, image_size=16, **options).train)  # type: ignore[arg-type]

    assert kind() is not StreamedSplit
    assert kind(timm=TimmAugment(enabled=True)) is StreamedSplit
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert kind() is StreamedSplit


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "digits",
            {"stream": True},
            "the images of digits are not files: leave data.stream and data.timm.enabled as they are",
        ),
        ("digits", {"timm": TimmAugment(enabled=True)}, "the images of digits are not files"),
        ("folder", {"stream": True}, "streamed images need data.image_size"),
        ("folder", {"stream": False, "timm": TimmAugment(enabled=True)}, "data.timm augments streamed files"),
        ("folder", {"crop_pct": 1.5}, r"data.crop_pct must be a share of the shorter side in \(0, 1\], not 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(jpegs: Path, name: str, options: dict, message: str):
    with pytest.raises((ConfigError, DataError), match=message):
        load_dataset(name, root=jpegs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.5, 0.1)}, "data.timm.scale goes from a number above 0 to .* not below it, got 0.5, 0.1"),
        ({"scale": (0.1, math.inf)}, "data.timm.scale goes from .*, got 0.1, inf"),
        ({"ratio": (math.nan, 1.0)}, "data.timm.ratio goes from .*, got nan, 1.0"),
        ({"hflip": math.nan}, r"data.timm.hflip is a chance in \[0, 1\], got nan"),
        ({"color_jitter": math.inf}, "data.timm.color_jitter is a finite strength .*, got inf"),
        ({"color_jitter": (0.4, math.nan, 0.4)}, r"data.timm.color_jitter is .*, got \(0.4, nan, 0.4\)"),
        ({"hflip": 2.0}, r"data.timm.hflip is a chance in \[0, 1\], got 2.0"),
        ({"repeats": 0}, "data.timm.repeats is a number of at least 1, got 0"),
        ({"color_jitter": -1.0}, "data.timm.color_jitter is a finite strength of at least 0"),
        ({"color_jitter": (0.4, 0.4)}, r"three or four of them, the fourth at most 0.5, got \(0.4, 0.4\)"),
        ({"color_jitter": (0.4, -0.4, 0.4)}, r"data.timm.color_jitter is .*, got \(0.4, -0.4, 0.4\)"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, r"data.timm.color_jitter is .*, got \(0.4, 0.4, 0.4, 0.6\)"),
        ({"auto_augment": "nonsense"}, "timm refuses data.timm"),
    ],
)
def test_values_that_timm_would_not_take_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        TimmAugment(enabled=True, **options)


def test_values_without_effect_are_refused():
    with pytest.raises(ConfigError, match=r"data.timm.hflip has no effect unless data.timm.enabled is true"):
        TimmAugment(hflip=0.1)


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed, (20, 24)).save(file, "JPEG")
    return file.getvalue()


def write_web_dataset(root: Path) -> Path:
    root.mkdir()
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        files = {
            f"{n:03}.{kind}": jpeg(n) if kind == "jpg" else b"%d" % (n % 2) for n in numbers for kind in ("jpg", "cls")
        }
        write_shard(root / f"x-train-{shard}.tar", files)
    write_shard(root / "x-validation-0.tar", {"9.jpg": jpeg(9), "9.cls": b"1"})
    shards = {"train": ["x-train-0.tar", "x-train-1.tar"], "validation": ["x-validation-0.tar"]}
    splits = ", ".join(
        f'"{name}": {{"name": "{name}", "filenames": {files}, "shard_lengths": {[3] * len(files)},'
        f' "num_samples": {3 * len(files)}}}'.replace("'", '"')
        for name, files in shards.items()
    )
    (root / "_info.json").write_text(f'{{"splits": {{{splits}}}}}')
    return root


@pytest.mark.filterwarnings("ignore:.*no test image")
def test_shards_of_a_web_dataset_are_read_at_any_place(tmp_path: Path):
    pytest.importorskip("webdataset")
    root = write_web_dataset(tmp_path / "wds")
    dataset = load_dataset("wds/x", root=root, image_size=16, validation=0, timm=STRONG, workers=0)
    assert dataset.train.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert dataset.validation is None
    assert dataset.test is not None  # the held-out split that is alone
    assert dataset.train.paths is not None
    assert dataset.train.paths[4].endswith("x-train-1.tar:004.jpg")
    memory = load_dataset("wds/x", root=root, image_size=16, validation=0)
    assert torch.equal(memory.train.pictures(torch.tensor([4])), dataset.train.pictures(torch.tensor([4])))


def test_shards_that_do_not_fit_are_refused(tmp_path: Path):
    pytest.importorskip("webdataset")
    root = write_web_dataset(tmp_path / "wds")
    write_shard(root / "x-train-1.tar", {"004.jpg": jpeg(4), "004.cls": b"cat", "005.jpg": jpeg(5)})
    with pytest.raises(DataError, match=r"one integer label for each image is expected, sample 3 has 'cat'"):
        load_dataset("wds/x", root=root, image_size=16)
    write_shard(root / "x-train-1.tar", {"005.jpg": jpeg(5)})
    with pytest.raises(DataError, match=r"x-train-1.tar:005.jpg has no label file 005.cls"):
        load_dataset("wds/x", root=root, image_size=16)
    write_shard(root / "x-train-1.tar", {"005.heic": jpeg(5), "005.cls": b"1"})
    with pytest.raises(DataError, match=r"x-train-1.tar:005.cls has no image beside it; they end in .avif"):
        load_dataset("wds/x", root=root, image_size=16)
    shard = root / "x-train-0.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:1024])
    with pytest.raises(DataError, match=r"x-train-0.tar ends or is damaged at byte|x-train-0.tar cannot be read"):
        load_dataset("wds/x", root=root, image_size=16)
    shard.write_bytes(content)
    (root / "x-train-1.tar").unlink()
    with pytest.raises(DataError, match=r"x-train-1.tar is not a file; copy the shards to a local folder"):
        load_dataset("wds/x", root=root, image_size=16)


def write_labels(root: Path, labels: list[int], held_out: list[int]) -> Path:
    """A WebDataset with these labels; the images are GIF."""
    write_web_dataset(root)
    for name, of in (("x-train-0", labels[:3]), ("x-train-1", labels[3:]), ("x-validation-0", held_out)):
        files = {f"{n}.{kind}": gif() if kind == "gif" else b"%d" % of[n] for n in range(len(of)) for kind in KINDS}
        write_shard(root / f"{name}.tar", files)
    return root


KINDS = ("gif", "cls")


def gif() -> bytes:
    file = io.BytesIO()
    picture(0, (20, 24)).save(file, "GIF")
    return file.getvalue()


def test_labels_without_names_are_numbered_from_0(tmp_path: Path):
    pytest.importorskip("webdataset")
    root = write_labels(tmp_path / "wds", [20, 0, 10, 10, 0, 20], [10])
    with pytest.warns(UserWarning, match="wds/x has 3 labels, 0 … 20; they are numbered from 0 on"):
        dataset = load_dataset("wds/x", root=root, image_size=16, validation=0)
    assert dataset.class_names == ("0", "10", "20")
    assert dataset.train.targets.tolist() == [2, 0, 1, 1, 0, 2]
    assert dataset.test is not None
    assert dataset.test.targets.tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "held_out", "message"),
    [
        ([0, 1, 1, 0], [2], "wds/x validation: label 2 does not occur in the training samples; they have 0 … 1"),
        ([0, 1, 1, 0], [1, -1], "wds/x validation: labels of at least 0 are expected, one is -1; remove its sample"),
        ([0, 1, 1, -1], [1], "wds/x train: labels of at least 0 are expected, one is -1; remove its sample"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: list[int], held_out: list[int], message: str):
    pytest.importorskip("webdataset")
    with pytest.raises(DataError, match=message):
        load_dataset("wds/x", root=write_labels(tmp_path / "wds", labels, held_out), image_size=16)


def test_a_limit_below_the_labels_is_refused(tmp_path: Path):
    pytest.importorskip("webdataset")
    root = write_labels(tmp_path / "wds", [20, 0, 10, 10, 0, 20], [10])
    with (
        pytest.warns(UserWarning, match="3 labels, 0 … 20; they are numbered from 0 on"),
        pytest.raises(ConfigError, match=r"data\.limit_train is at least the number of classes, 3, got 2"),
    ):
        load_dataset("wds/x", root=root, image_size=16, validation=0, limit_train=2)


def test_labels_of_a_table_without_names_are_numbered_from_0(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [picture(n, (20, 24)) for n in range(4)], "label": [1, 2, 2, 3]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "d" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "d" / "data" / "train-0.parquet"))
    with pytest.warns(UserWarning, match=r"has 3 labels, 1 … 3; they are numbered from 0 on"):
        dataset = load_dataset(f"hfds/{tmp_path / 'd'}", root=tmp_path / "cache", image_size=16, validation=0)
    assert dataset.class_names == ("1", "2", "3")
    assert dataset.train.targets.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("names", [("caf\u00e9", "cafe\u0301"), ("empty", "cat", "dog")], ids=["alike", "empty"])
def test_names_of_a_table_that_do_not_fit_are_told(tmp_path: Path, names: tuple[str, ...]):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [picture(n, (20, 24)) for n in range(2)], "label": [len(names) - 2, len(names) - 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    (tmp_path / "d" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "d" / "data" / "train-0.parquet"))
    name, options = f"hfds/{tmp_path / 'd'}", {"root": tmp_path / "cache", "image_size": 16, "validation": 0}
    if len(names) == 2:
        with pytest.raises(DataError, match="look the same; rename one"):
            load_dataset(name, **options)  # type: ignore[arg-type]
    else:
        with pytest.warns(UserWarning, match="1 of 3 classes have no training image, such as empty"):
            load_dataset(name, **options)  # type: ignore[arg-type]


def test_a_held_out_split_without_labels_is_left_out(tmp_path: Path):
    pytest.importorskip("webdataset")
    root = write_labels(tmp_path / "wds", [0, 1, 1, 0], [-1, -1])
    assert load_dataset("wds/x", root=root, image_size=16, validation=0).test is None


def test_a_row_of_hugging_face_without_an_image_is_named(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [picture(0, (20, 24)), None, picture(1, (20, 24))], "label": [0, 1, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    (tmp_path / "d" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "d" / "data" / "train-0.parquet"))
    with pytest.raises(DataError, match="train sample 1 cannot be read: its row holds no image; replace it"):
        load_dataset(f"hfds/{tmp_path / 'd'}", root=tmp_path / "cache", image_size=16, validation=0)


def test_local_parquet_of_hugging_face_is_read_at_any_place(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [picture(n, (20, 24)) for n in range(4)], "label": [0, 1, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "d" / "data").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "d" / "data" / "train-0.parquet"))
    options = {"root": tmp_path / "cache", "image_size": 16, "validation": 0, "workers": 0}
    dataset = load_dataset(f"hfds/{tmp_path / 'd'}", timm=STRONG, **options)  # type: ignore[arg-type]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.targets.tolist() == [0, 1, 1, 0]
    batch = next(loader(dataset.train, shuffle=False).batches(0))  # type: ignore[arg-type]
    assert batch.images.shape == (4, 3, 16, 16)
    memory = load_dataset(f"hfds/{tmp_path / 'd'}", **options)  # type: ignore[arg-type]
    rows = torch.tensor([2])
    assert torch.equal(dataset.train.pictures(rows), memory.train.pictures(rows))
