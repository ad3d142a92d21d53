"""Mistakes of users with every command: one line that names what is wrong, exit code 2, and nothing written.

All run in this process, over one folder of good and bad files. `test_cli.py` has the messages of the most common ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import disk_kd
from disk_kd.cli import main
from disk_kd.errors import DiskKDError
from disk_kd.files import save_tensors
from disk_kd.models.about import METADATA, read_about
from disk_kd.training import CHECKPOINT
from disk_kd.training.checkpoint import load_checkpoint, save_checkpoint

LIMIT_S = 60
SMALL = [
    *("--data.limit_train=24", "--student.name=cifar_resnet10_xxxs", "--train.epochs=1", "--train.batch_size=12"),
    *("--train.warmup_epochs=0", "--train.compile=false"),
]
NEW = [*SMALL, "--output=new"]
LEARN = [*NEW, "--teacher.name=cifar_resnet10_xxxs", "--teacher.weights=run"]
FOLDER = [*NEW, "--data.name=folder", "--data.limit_train=4", "--train.batch_size=2"]
FEW = ["--samples=8", "--batch_size=4", "--memory=false", "--sweeps=false", "--peers=false", "--profile=false"]
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = {
    "laughs": LAUGHS,
    "itself": "train: &t {epochs: *t}\n",
    "merged": "train: {<<: [1, 2]}\n",
    "listed": "- a\n",
    "number": "3\n",
    "key": "? [a, b]\n: 1\n",
    "date-key": "2020-01-01: 3\n",
    "code": "train: !!python/object/apply:os.system ['touch owned']\n",
    "set": "train: {milestones: !!set {a, b}}\n",
    "two": "train: {epochs: 1}\n---\ntrain: {epochs: 2}\n",
    "tab": "train:\n\tepochs: 2\n",
    "control": "description: \x01\n",
    "date": "train: {seed: 2020-01-01}\n",
    "import-5": "import: 5\n",
    "import-none": "import: [nowhere_module]\n",
    "import-nul": 'import: ["a\\0b"]\n',
    "base-5": "base: [5]\n",
    "base-pipe": "base: pipe\n",
    "base-folder": "base: empty\n",
    "published": "published: many\n",
    "output-number": "output: 5\n",
    "output-surrogate": 'output: "\\ud800"\n',
    "escape": '"\\e[31mred": 3\n',
    "quiet": "quiet: maybe\n",
    "options-5": "student: {options: {5: 1}}\n",
    "mean": "student: {options: {mean: [a], std: [b]}}\n",
    "scale": "data: {timm: {scale: [0.1, .inf]}}\n",
    "cutout": "data: {augment: {cutout: -3}}\n",
    "period": "method: {name: disk, budget: {start: 1, end: 0.5, period: 0}}\n",
}
EXPERIMENTS = {
    "no-rows": "rows: {}\n",
    "row-list": "rows: [1]\n",
    "row-empty": "rows: {'': {recipe: digits/ce}}\n",
    "row-up": "rows: {..: {recipe: digits/ce}}\n",
    "row-nul": 'rows: {"a\\0": {recipe: digits/ce}}\n',
    "row-recipe": "rows: {a: {recipe: 5}}\n",
    "row-key": "rows: {a: {recipe: digits/ce, trian: {lr: 1}}}\n",
    "seeds-true": "seeds: true\nrows: {a: {recipe: digits/ce}}\n",
    "seeds-many": "seeds: 999999999\nrows: {a: {recipe: digits/ce}}\n",
    "seeds-none": "seeds: 0\nrows: {a: {recipe: digits/ce}}\n",
    "tuning": "tuning_seeds: 9\nrows: {a: {recipe: digits/ce}}\n",
    "baseline": "baseline: zz\nrows: {a: {recipe: digits/ce}}\n",
    "grid-huge": "rows: {a: {recipe: digits/ce, grid: {"
    + ", ".join(f"train.x{n}: [{','.join(map(str, range(100)))}]" for n in range(4))
    + "}}}\n",
    "grid-scalar": "rows: {a: {recipe: digits/ce, grid: {train.lr: 3}}}\n",
    "grid-key": "rows: {a: {recipe: digits/ce, grid: {5: [1]}}}\n",
    "start": "rows: {a: {recipe: digits/ce, start: b}, b: {recipe: digits/ce, start: a}}\n",
    "device": "all: {train: {device: hpu}}\nrows: {a: {recipe: digits/ce}}\n",
    "data": "all: {data: {name: folder, root: nowhere}}\nrows: {a: {recipe: digits/ce}}\n",
    "weights": "rows: {a: {recipe: digits/kd, teacher: {weights: nowhere.pth}}}\n",
    "model": "rows: {a: {recipe: digits/ce, student: {name: nope}}}\n",
}
ABOUT: dict[str, dict[str, Any]] = {
    "no-channels": {"in_chans": 0},
    "many-channels": {"in_chans": 10**12},
    "no-size": {"image_size": 0},
    "crop": {"crop_pct": 9},
    "grey": {"grey_bits": "x"},
    "mean": {"mean": ["a"]},
    "std": {"std": [0.0]},
    "short": {"classes": ["a"]},
    "hub": {"model": "hf-hub:nobody/none"},
    "code": {"model": "os:system"},
    "escape": {"model": "a\n\x1b[31mb"},
    "options": {"options": {"checkpoint_path": "/etc/passwd"}},
    "hint": {"hint": {"name": "simkd", "options": [], "teacher": 5}},
    "hint-code": {"hint": {"name": "os:system", "options": {}, "teacher": {"name": "x", "options": {}}}},
}
SUMMARIES = {"list": "[]", "cut": "{", "deep": "[" * 9000 + "]" * 9000, "nan": "NaN", "bytes": "\udcff"}
METRICS = {"text": "hello\n", "wrong": '{"kind":"train","step":"a","epoch":null,"phase":3,"loss":"x","lr":[1]}\n'}
STATES: dict[str, Any] = {"position": {"steps": 10**30}, "optimizers": [1], "task": "x", "random": None, "meter": 3}


def write_recipes(root: Path) -> None:
    for folder, texts in (("recipes", RECIPES), ("experiments", EXPERIMENTS)):
        (root / folder).mkdir()
        for name, text in texts.items():
            (root / folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (root / "recipes" / "latin.yaml").write_bytes(b"description: caf\xe9\n")
    os.mkfifo(root / "recipes" / "pipe")
    (root / "recipes" / "empty").mkdir()


def write_weights(root: Path) -> None:
    good, about = load_file(root / "run" / "student.safetensors"), read_about(root / "run" / "student.safetensors")
    (root / "weights").mkdir()
    for name, change in ABOUT.items():
        save_tensors(root / "weights" / f"{name}.safetensors", good, {METADATA: json.dumps(about | change)})
    save_tensors(root / "weights" / "deep.safetensors", good, {METADATA: "[" * 9000 + "]" * 9000})
    (root / "weights" / "zero.safetensors").touch()
    (root / "weights" / "text.pth").write_text("hello")
    (root / "weights" / "cut.safetensors").write_bytes((root / "run" / "student.safetensors").read_bytes()[:3000])
    kinds: dict[str, Any] = {
        "sparse": {key: value.to_sparse() for key, value in good.items()},
        "meta": {key: value.to("meta") for key, value in good.items()},
        "complex": {key: value.to(torch.complex64) for key, value in good.items()},
        "listed": [torch.ones(1)],
        "number": 3,
        "missing": dict(list(good.items())[:-2]),
        "good": good,
    }
    for name, content in kinds.items():
        torch.save(content, root / "weights" / f"{name}.pth")
    os.mkfifo(root / "weights" / "pipe.pth")
    os.mkfifo(root / "weights" / "pipe.safetensors")
    (root / "weights" / "loop.safetensors").symlink_to("loop.safetensors")


def write_runs(root: Path) -> None:
    """Finished runs with a damaged summary or log, and unfinished runs with a damaged checkpoint."""
    for name, text in SUMMARIES.items():
        folder = shutil.copytree(root / "run", root / f"summary-{name}")
        (folder / "summary.json").write_text(text, errors="surrogateescape")
    for name, text in METRICS.items():
        folder = shutil.copytree(root / "kd", root / f"metrics-{name}")
        (folder / "metrics.jsonl").write_text(text)
    for name, text in {"list": "[1]\n", "empty": "", "laughs": LAUGHS, "seed": "train: {seed: x}\n"}.items():
        folder = shutil.copytree(root / "run", root / f"config-{name}")
        (folder / "config.yaml").write_text(text)
    begun = shutil.copytree(root / "run", root / "begun")
    for name in ("summary.json", "student.safetensors"):
        (begun / name).unlink()
    for name, value in STATES.items():
        folder = shutil.copytree(begun, root / f"state-{name}")
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("output: run\n", f"output: {folder.name}\n"))
        save_checkpoint(folder / CHECKPOINT, load_checkpoint(folder / CHECKPOINT) | {name: value})
    for name, text in {"list": "[1]", "text": "x"}.items():
        folder = shutil.copytree(begun, root / f"data-{name}")
        (folder / "data.json").write_text(text)


def write_photos(root: Path) -> None:
    def photos(
        name: str, classes: tuple[str, ...] = ("cat", "dog"), splits: tuple[str, ...] = ("train", "test")
    ) -> Path:
        for split in splits:
            for label in classes:
                (root / name / split / label).mkdir(parents=True)
                for number in range(3):
                    pixels = np.full((8, 8, 3), 40 * number, np.uint8)
                    Image.fromarray(pixels).save(root / name / split / label / f"{number}.png")
        return root / name

    photos("photos")
    (photos("photos-text") / "train" / "cat" / "9.png").write_text("no image")
    (photos("photos-eps") / "train" / "cat" / "9.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    photos("photos-one", ("cat",))
    photos("photos-alike", ("caf\u00e9", "cafe\u0301"))
    photos("photos-untrained", splits=("test",))
    other = photos("photos-other")
    (other / "test" / "cat").rename(other / "test" / "b\x1b[31mird")
    sizes = photos("photos-sizes")
    Image.fromarray(np.zeros((20, 8, 3), np.uint8)).save(sizes / "train" / "cat" / "9.png")
    deep = photos("photos-16")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep / "train" / "cat" / "9.png")
    (root / "tars").mkdir()
    (root / "tars" / "train.tar").write_bytes(b"x" * 600)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, a run of a method with a teacher, and all that is wrong."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["train", *SMALL, "--output=run", "--quiet"]) == 0
        learn = [
            "--teacher.name=cifar_resnet10_xxxs",
            "--teacher.weights=run",
            "--method=disk",
            "--teacher.store=false",
        ]
        assert main(["distill", *SMALL, *learn, "--output=kd", "--quiet"]) == 0
        write_recipes(root)
        write_weights(root)
        write_runs(root)
        write_photos(root)
        os.mkfifo(root / "pipe")
        (root / "link").symlink_to("run/summary.json")
        (root / "plain").write_text("mine")
        (root / "raises.py").write_text("raise ValueError('two\\nlines')\n")
        (root / "leaves.py").write_text("import sys\nsys.exit(3)\n")
        (root / "gives.py").write_text("def number(num_classes, in_chans):\n    return 3\n\nNUMBER = 5\n")
        patch.setattr("sys.path", [str(root), *sys.path])
        patch.setattr("sys.dont_write_bytecode", True)
        yield root


def files(root: Path) -> dict[str, object]:
    """Everything below a folder: small files with their content, others with size and time."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(root):
        found |= {f"{folder}/{name}": None for name in folders}
        for name in names:
            path = Path(folder, name)
            about = path.lstat()
            small = stat.S_ISREG(about.st_mode) and about.st_size < 5_000
            found[str(path)] = path.read_bytes() if small else (about.st_size, about.st_mtime_ns)
    return found


def hanging(*_: object) -> None:
    raise AssertionError("it waits for ever")


def check_one_line(arguments: list[str], named: str, world: Path) -> None:
    before, error = files(world), io.StringIO()
    signal.signal(signal.SIGALRM, hanging)
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            code = main(arguments)
    finally:
        signal.alarm(0)
    text = error.getvalue()
    assert code == 2, text
    assert text.count("\n") == 1, text
    assert text.removesuffix("\n").isprintable(), text
    assert named in text, text
    assert len(text) < 900, text
    after = files(world)
    changed = sorted(path for path in after.keys() | before.keys() if after.get(path, 0) != before.get(path, 0))
    assert not changed, changed[:5]


COMMANDS = ("train", "distill", "evaluate", "compare", "store-teacher", "export", "report", "inspect", "demo", "toy")
COMMANDS += ("list", "convert", "bench")
BEGINNINGS: dict[str, list[str]] = {
    "train": NEW,
    "distill": LEARN,
    "store-teacher": LEARN,
    "evaluate": ["run"],
    "compare": ["digits/ce", "--seeds=1"],
    "export": ["run", "--output=new.safetensors"],
    "report": ["run", "--output=new.html"],
    "inspect": ["kd", "--output=new.csv"],
    "demo": ["--runs=new"],
    "toy": ["intervals"],
    "list": ["models"],
    "convert": ["weights/good.pth", "--output=new.safetensors"],
    "bench": FEW,
}
"""What each command is given beside the mistake."""
ANYWHERE = [("--nonsense=3", "nonsense"), ("--\x1b[31mred=3", "x1b[31mred"), ("--n\udcff=3", "udcff")]
CASES = [([name, *BEGINNINGS[name], option], named) for name in COMMANDS for option, named in ANYWHERE]
CASES += [
    ([name, *BEGINNINGS[name], f"--import={module}"], module)
    for name in ("train", "distill", "store-teacher", "evaluate", "compare", "export", "report", "inspect")
    for module in ("nowhere_module", "raises")
]
CASES += [(["train", f"recipes/{name}.yaml", *NEW[:-1]], "") for name in (*RECIPES, "latin") if name != "period"]
CASES += [(["distill", "recipes/period.yaml", *LEARN], "period")]
CASES += [(["train", name, *NEW], "") for name in ("pipe", "/dev/zero", "run/student.safetensors", "a\0b", "c\udce9")]
CASES += [(["compare", f"experiments/{name}.yaml"], "") for name in EXPERIMENTS]
CASES += [
    (["evaluate", f"weights/{name}", "--data.name=digits", "--model.name=cifar_resnet10_xxxs"], name)
    for name in ("zero.safetensors", "text.pth", "cut.safetensors", "deep.safetensors", "sparse.pth", "meta.pth")
]
CASES += [(["evaluate", f"weights/{name}.safetensors", "--data.name=digits"], "") for name in ABOUT]
CASES += [
    ([command, *first, f"{option}weights/{name}", *rest], name.partition(".")[0])
    for name in ("complex.pth", "listed.pth", "number.pth", "missing.pth", "pipe.pth", "pipe.safetensors")
    for command, first, option, rest in (
        ("train", NEW, "--student.weights=", []),
        ("distill", LEARN, "--teacher.weights=", []),
    )
]
CASES += [
    (["convert", f"weights/{name}", "--output=new.safetensors"], name)
    for name in ("sparse.pth", "meta.pth", "listed.pth", "pipe.pth", "loop.safetensors", "text.pth")
]
CASES += [(["export", f"weights/{name}.safetensors", "--output=new.safetensors"], "") for name in ABOUT]
CASES += [([command, f"summary-{name}"], "summary") for name in SUMMARIES for command in ("report",)]
CASES += [(["inspect", f"config-{name}"], f"config-{name}") for name in ("list", "empty", "laughs")]
CASES += [(["inspect", "config-seed"], "train.seed")]
CASES += [(["train", f"state-{name}/config.yaml", "--resume", "--quiet"], f"state-{name}") for name in STATES]
CASES += [(["train", f"data-{name}/config.yaml", "--resume", "--quiet"], "") for name in ("list", "text")]
CASES += [
    (["train", *FOLDER, f"--data.root={name}"], named)
    for name, named in (
        ("photos-text", "9.png"),
        ("photos-eps", "9.png"),
        ("photos-one", "one class"),
        ("photos-alike", "look the same"),
        ("photos-untrained", "train"),
        ("photos-other", "x1b[31mird"),
        ("photos-sizes", "9.png"),
        ("photos-16", "grey_bits"),
        ("tars", "train.tar"),
        ("pipe", "pipe"),
        ("nowhere", "nowhere"),
        ("a\0b", "NUL"),
    )
]
CASES += [
    ([command, *BEGINNINGS[command], *more], named)
    for command, more, named in (
        ("train", ["--data.name=hfds/nobody"], "download"),
        ("train", ["--data.name=torch/nope", "--data.root=photos"], "nope"),
        ("train", ["--data.name=wds/x"], "data.root"),
        ("train", ["--data.image_size=9999"], "GiB"),
        ("train", ["--train.lr=1e400"], "inf"),
        ("train", ["--train.epochs=99999999999999999999"], "99999999999999999999"),
        ("train", ["--train.seed=-1"], "-1"),
        ("train", ["--train.device=cuda:-1"], "cuda:-1"),
        ("train", ["--train.optimizer=a\0b"], "a"),
        ("train", ["--train.optimizer=lbfgs"], "lbfgs"),
        ("train", ["--student.name=gives:number"], "gives:number"),
        ("train", ["--student.name=gives:NUMBER"], "NUMBER"),
        ("train", ["--student.name=raises:x"], "raises"),
        ("train", ["--student.name=c\udce9"], "udce9"),
        ("train", ["--student.name=local-dir:nowhere"], "nowhere"),
        ("train", ["--student.options={a: &a {b: *a}}"], "itself"),
        ("train", [f"--student.options={'[' * 1500}{']' * 1500}"], "nested too deeply"),
        ("train", ["--student.weights=begun"], "begun"),
        ("train", ["--student.pretrained=true"], "pretrained"),
        ("train", ["--data.mix.mixup=-1"], "-1"),
        ("distill", ["--method=gives:NUMBER"], "NUMBER"),
        ("distill", ["--method={name: 5}"], "5"),
        ("distill", ["--hint=c\udce9"], "udce9"),
        ("distill", ["--method=crd", "--hint=crd"], "crd"),
        ("distill", ["--hint=crd", "--hint.negatives=0"], "negatives"),
        ("distill", ["--method=disk", "--method.budget=nan"], "budget"),
        ("distill", ["--method=kd", "--method.temperature={a: 1}"], "temperature"),
        ("distill", ["--teacher.weights=recipe:nope"], "nope"),
        ("distill", ["--teacher.image_size=100000"], "100000"),
        ("distill", ["--data.name=folder", "--data.root=photos", "--data.limit_train=4"], "does not fit ResNet"),
        ("store-teacher", ["--views=99999999999"], "99999999999"),
        ("store-teacher", ["--method=ce"], "method with a teacher"),
        ("store-teacher", ["--teacher.store_top_k=99999"], "99999"),
        ("store-teacher", ["--runs=plain"], "plain"),
        ("evaluate", ["--data.name=folder", "--data.root=photos"], ""),
        ("evaluate", ["--split=training"], "training"),
        ("evaluate", ["--device=hpu"], "hpu"),
        ("evaluate", ["--data.image_size=9999"], "GiB"),
        ("evaluate", ["--model.name=resnet18"], "ResNet"),
        ("compare", ["--baseline=zz"], "zz"),
        ("compare", ["--against=nope"], "nope"),
        ("compare", ["--runs=plain"], "plain"),
        ("compare", ["--runs=a\0b"], "NUL"),
        ("compare", ["--train.device=hpu"], "hpu"),
        ("compare", ["--student.weights=weights/gone.pth"], "gone.pth"),
        ("compare", ["--jobs=0"], "0"),
        ("export", ["--output=pipe/x.safetensors"], "pipe"),
        ("export", ["--format=pth"], "pth"),
        ("export", ["--output=kd/student.safetensors", "--half"], "exists"),
        ("report", ["--output=pipe"], "pipe"),
        ("report", ["--output=link"], "link"),
        ("report", ["--output=nowhere/x.html"], "nowhere"),
        ("report", ["--device=hpu"], "hpu"),
        ("report", ["nowhere"], "nowhere"),
        ("inspect", ["--output=/dev/null"], "/dev/null"),
        ("inspect", ["--price=nan"], "nan"),
        ("inspect", ["--by=luck"], "luck"),
        ("inspect", ["--views=0"], "0"),
        ("demo", ["--seeds=x"], "x"),
        ("demo", ["--jobs=-1"], "-1"),
        ("demo", ["--runs=plain/x"], "plain"),
        ("demo", ["--report=maybe"], "maybe"),
        ("toy", ["--starts=1"], "1"),
        ("toy", ["--seed=99999999999999999999999"], "99999999999999999999999"),
        ("toy", ["--output=pipe", "--starts=3"], "pipe"),
        ("list", ["zzzz"], "zzzz"),
        ("list", ["\x1b[31m"], "x1b[31m"),
        ("convert", ["--output=new.txt"], "new.txt"),
        ("convert", ["--output=nowhere/x.safetensors"], "nowhere"),
        ("bench", ["--student=nope"], "nope"),
        ("bench", ["--teachers=3"], "3"),
        ("bench", ["--classes=2000000000"], "2000000000"),
        ("bench", ["--image_size=100000000"], "100000000"),
        ("bench", ["--output=pipe"], "pipe"),
        ("bench", ["--device=hpu"], "hpu"),
    )
]
CASES += [
    (["bench", "--to-accuracy", "digits/kd", *more], named)
    for more, named in (
        (["--contestants", "nope"], "nope"),
        (["--target=nan"], "nan"),
        (["--only", "plain_ce", "train.zz=3"], "zz"),
        (["--epochs=0"], "0"),
        (["--runs=plain"], "plain"),
    )
]
CASES += [([word], "") for word in ("", "\x1b[31mred", "c\udce9", "a\nb")]
CASES += [([name], "") for name in ("list", "toy", "convert", "export", "report", "inspect", "compare", "evaluate")]


def _id(case: tuple[list[str], str]) -> str:
    own = [word for word in case[0] if word not in {*LEARN, *FOLDER, *FEW, "--quiet"}]
    return ascii(" ".join(own))[1:80]


@pytest.mark.parametrize(("arguments", "named"), CASES, ids=map(_id, CASES))
def test_one_line_and_nothing_written(arguments: list[str], named: str, world: Path) -> None:
    check_one_line(arguments, named, world)


@pytest.mark.parametrize(
    "call",
    [
        lambda: disk_kd.train(5),  # type: ignore[arg-type]
        lambda: disk_kd.train(train=5),
        lambda: disk_kd.train(data=[1]),
        lambda: disk_kd.train({"train": {1: 2}}),
        lambda: disk_kd.train({"zz": 1}),
        lambda: disk_kd.train(train={"lr": "x"}),
        lambda: disk_kd.distill(method={"name": 5}),
        lambda: disk_kd.distill("digits/kd", runs="a\0b"),
        lambda: disk_kd.distill(train={"milestones": object()}),
        lambda: disk_kd.evaluate("nowhere"),
        lambda: disk_kd.evaluate("run", data=5),  # type: ignore[arg-type]
        lambda: disk_kd.evaluate("run", split="training"),
        lambda: disk_kd.evaluate("run", device="hpu"),
        lambda: disk_kd.load_student("plain"),
        lambda: disk_kd.load_student("begun"),
        lambda: disk_kd.compare({"a": {}}),
        lambda: disk_kd.compare({"a": 5}),
        lambda: disk_kd.compare({}),
        lambda: disk_kd.compare([]),
        lambda: disk_kd.compare([5]),  # type: ignore[list-item]
        lambda: disk_kd.compare("nowhere.yaml"),
        lambda: disk_kd.compare(["digits/ce"], seeds=0),
        lambda: disk_kd.compare(["digits/ce"], seeds=True),
        lambda: disk_kd.compare(["digits/ce"], jobs=0),
        lambda: disk_kd.compare(["digits/ce"], baseline="zz"),
    ],
)
def test_python_functions_raise_our_errors(call: Any, world: Path) -> None:
    before = files(world)
    with pytest.raises(DiskKDError) as caught:
        call()
    assert str(caught.value).isprintable()
    assert files(world) == before
