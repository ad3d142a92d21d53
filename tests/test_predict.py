"""`disk-kd predict`: every format answers as evaluation does, for files, folders, tars and lists."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import disk_kd
from disk_kd.cli import main
from disk_kd.data import Loader, load_dataset
from disk_kd.data.settings import DataSettings
from disk_kd.export import ONNX_PACKAGES, export, read_student
from disk_kd.inference import Prediction, image_files, open_classifier, predict_files
from disk_kd.models.about import METADATA

HAS_ONNX = all(map(find_spec, ONNX_PACKAGES))
IMAGES = 40
SHIP = (Path(__file__).parents[1] / "docs" / "ship.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of many sizes, in class folders."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(IMAGES):
            label = number % 2
            height, width = draw.integers(20, 60, 2)
            pixels = draw.integers(0, 128, (height, width, 3)) + 100 * label
            path = folder / split / ("=ape", "bee")[label] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A run on the colour images, with a centre crop."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    data = ["--data.name=folder", f"--data.root={photos}", "--data.image_size=16", "--data.crop_pct=0.8"]
    options = [option for option in tiny if "limit_train" not in option and "batch_size" not in option]
    assert main(["train", *options, *data, "--train.batch_size=8", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def onnx_file(run: Path) -> Path:
    """The run as ONNX; it takes seconds to write."""
    return export(run, "onnx").path


def says(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str) -> None:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert re.search(message, error), captured.err


def of_api(model: Path, images: Path, **options: int) -> list[Prediction]:
    return list(disk_kd.predict(model, images, **options))


def test_a_run_gives_the_logits_of_evaluation_bit_for_bit(run: Path, photos: Path) -> None:
    split = load_dataset(DataSettings(name="folder", root=photos, image_size=16, crop_pct=0.8)).test
    assert split is not None
    student = read_student(run)
    about = student.about
    loader = Loader(split, batch_size=200, mean=about["mean"], std=about["std"], shuffle=False, drop_last=False)
    with torch.inference_mode():
        logits = torch.cat([student.model(batch.images) for batch in loader.batches(0)])
    temperature = json.loads((run / "summary.json").read_text())["test"]["temperature"]
    expected = (logits / temperature).softmax(1)
    found = of_api(run, photos / "test")
    assert [Path(one.path).name for one in found] == [Path(path).name for path in split.paths or ()]
    for row, one in zip(expected, found, strict=True):
        assert list(one.probabilities) == row.sort(descending=True).values.tolist()
        assert one.classes == tuple(about["classes"][label] for label in one.labels)
    right = sum(one.labels[0] == target for one, target in zip(found, split.targets.tolist(), strict=True))
    measured = json.loads((run / "summary.json").read_text())["test"]
    assert 100 * right / len(found) == pytest.approx(measured["top1"])


def test_every_format_prepares_images_alike(
    run: Path, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = of_api(run, photos / "test")
    models = [
        export(run, "safetensors", tmp_path / "s.safetensors").path,
        export(run, "timm", tmp_path / "student").path,
        export(run, "torch.export", tmp_path / "s.pt2", with_normalisation=True).path,
    ]
    if HAS_ONNX:
        models.append(request.getfixturevalue("onnx_file"))
    for model in models:
        calibrated = open_classifier(run).temperature if model.is_file() else None
        assert open_classifier(model).temperature == calibrated
        found = of_api(model, photos / "test")
        assert [one.labels for one in found] == [one.labels for one in expected], model
        if calibrated is not None:
            for one, other in zip(found, expected, strict=True):
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_lists_tars_and_folders_are_read_in_order(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((photos / "test" / "bee").iterdir())[:3]
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
    listed = "\n".join(map(str, [*files, "", tmp_path / "some.tar"]))
    (tmp_path / "list.txt").write_text(listed)
    capsys.readouterr()
    assert main(["predict", str(run), "--from-list", str(tmp_path / "list.txt"), "--top-k=1"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [row["path"] for row in rows] == [*map(str, files), *(f"{tmp_path / 'some.tar'}:{p.name}" for p in files)]
    assert rows[0].keys() == {"path", "class_1", "probability_1"}
    assert rows[0]["probability_1"] == rows[3]["probability_1"]
    assert "calibrated: logits are divided by" in captured.err
    assert "6 images" in captured.err
    monkeypatch.setattr("sys.stdin", io.StringIO(listed))
    output = tmp_path / "out.jsonl"
    assert main(["predict", str(run), "-", "--format=jsonl", f"--output={output}", "--quiet"]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert lines[0]["top"][0]["probability"] == pytest.approx(float(rows[0]["probability_1"]), abs=1e-6)
    assert capsys.readouterr().err == ""


def test_names_are_no_formulas_in_csv(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", str(run), str(photos / "test" / "=ape" / "00.png"), "--quiet"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert "'=ape" in (row["class_1"], row["class_2"])


def test_damaged_files_are_named(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = photos / "test" / "bee" / "01.png"
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    (tmp_path / "good.png").write_bytes(good.read_bytes())
    says(capsys, [run, tmp_path], r"bad\.png cannot be read as an image.*give --skip-unreadable")
    output = tmp_path / "out.csv"
    says(capsys, [run, tmp_path, f"--output={output}"], r"bad\.png cannot be read")
    assert not output.exists()
    assert not list(tmp_path.glob("*.tmp"))
    assert main(["predict", str(run), str(tmp_path), "--skip-unreadable"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.count("left out: ") == 2


def test_images_stream(run: Path, photos: Path) -> None:
    """Only a batch is read ahead."""
    read = list[str]()

    def noted(each: object) -> object:
        read.append(each.name)  # type: ignore[attr-defined]
        return each

    files = map(noted, image_files([photos / "test"]))
    predictions = predict_files(open_classifier(run), files, batch_size=4)  # type: ignore[arg-type]
    next(predictions)
    assert len(read) == 4


def write_flatten(path: Path, about: dict[str, Any]) -> None:
    """An ONNX file for images (1, 2, 2), whose pixels are its logits, with a description if one is given."""
    import onnx
    from onnx import TensorProto, helper

    inputs = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 2, 2])
    outputs = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Flatten", ["images"], ["logits"])], "flatten", [inputs], [outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if about:
        helper.set_model_props(model, {METADATA: json.dumps(about)})
    onnx.save(model, path)


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "the description in .*made.onnx cannot be read"),
        ({"crop_pct": 0}, "the description in .*made.onnx cannot be read"),
        ({"temperature": -1}, "the description in .*made.onnx cannot be read"),
        ({"temperature": "nan"}, "the description in .*made.onnx cannot be read"),
        ({"std": [0.0]}, "the description in .*made.onnx cannot be read"),
        ({"in_chans": 3}, "the description in .*made.onnx cannot be read"),
        ({"grey_bits": "x"}, "the description in .*made.onnx cannot be read"),
        ({"image_size": 3}, "made.onnx cannot classify images of 1x3x3 values .*export the model again"),
        ({"classes": ["a"]}, r"gives outputs \(1, 4\), and names 1 classes"),
    ],
)
def test_a_description_that_no_export_writes_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"classes": list("abcd"), "in_chans": 1, "image_size": 2, "mean": [0.0], "std": [1.0]}
    Image.fromarray(np.array([[0, 9], [0, 0]], dtype=np.uint8)).save(tmp_path / "grey.png")
    write_flatten(tmp_path / "made.onnx", about)
    assert of_api(tmp_path / "made.onnx", tmp_path / "grey.png")[0].classes[0] == "b"
    write_flatten(tmp_path / "made.onnx", about | changes)
    says(capsys, [tmp_path / "made.onnx", tmp_path / "grey.png"], message)


def test_no_input_is_replaced(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, listed = tmp_path / "image.png", tmp_path / "list.txt"
    image.write_bytes((photos / "test" / "bee" / "01.png").read_bytes())
    listed.write_text(f"{image}\n")
    before = image.read_bytes()
    for arguments in ([image, f"--output={image}"], [f"--from-list={listed}", f"--output={image}"]):
        says(capsys, [run, *arguments], "image.png is among the inputs, and would be replaced")
    says(capsys, [run, f"--from-list={listed}", f"--output={listed}"], "list.txt is among the inputs")
    weights = tmp_path / "student.safetensors"
    weights.write_bytes((run / "student.safetensors").read_bytes())
    says(capsys, [weights, image, f"--output={weights}"], "student.safetensors is among the inputs")
    says(
        capsys, [run, image, f"--output={tmp_path / 'none' / 'x.csv'}"], "there is no folder .*none for the predictions"
    )
    assert image.read_bytes() == before


def test_bad_input_is_one_line(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photos / "test" / "bee" / "01.png"
    says(capsys, [run], "no images: give files, folders or tars")
    says(capsys, [run, tmp_path / "none.png"], "no image, folder or tar at .*none.png")
    says(capsys, [run, tmp_path], "has no image; give a folder of image files")
    says(capsys, [run, "-", image], "- reads a list of images")
    says(capsys, ["resnet18", image], "for timm's pretrained model of this name give --pretrained")
    says(capsys, ["resnet_18", image, "--pretrained"], "timm has no model 'resnet_18'; nearest: resnet18")
    says(capsys, [tmp_path / "none.onnx", image], "no file at .*none.onnx")
    (tmp_path / "bad.tar").write_text("no tar")
    says(capsys, [run, tmp_path / "bad.tar"], "bad.tar cannot be read as an uncompressed tar")
    (tmp_path / "bad.pt2").write_bytes(b"no archive")
    says(capsys, [tmp_path / "bad.pt2", image], "bad.pt2 cannot be read as a torch.export archive")
    program = torch.export.export(torch.nn.Flatten(), (torch.zeros(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    says(capsys, [tmp_path / "foreign.pt2", image], "foreign.pt2 has no description of its classes")
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "a") as archive:
        archive.writestr("foreign/data/constants/opaque_obj_0", pickle.dumps(Path))
    says(capsys, [tmp_path / "foreign.pt2", image], "objects that are not tensors, which could run code")
    digits = disk_kd.train(
        data={"limit_train": 120},
        student="cifar_resnet10_xxxs",
        train={"epochs": 1, "compile": False, "warmup_epochs": 0},
        output=str(tmp_path / "digits"),
    )
    says(capsys, [digits.folder, image], r"01\.png is a colour image \(mode RGB\), the model takes grey images")
    if HAS_ONNX:
        (tmp_path / "bad.onnx").write_bytes(b"no graph")
        says(capsys, [tmp_path / "bad.onnx", image], "bad.onnx cannot be read as ONNX")
        write_flatten(tmp_path / "foreign.onnx", {})
        says(capsys, [tmp_path / "foreign.onnx", image], "foreign.onnx is not an ONNX file of disk-kd export")


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
def test_the_documented_example_needs_onnxruntime_and_pillow_alone(
    onnx_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its classes and probabilities are those of `disk-kd predict`."""
    (code,) = (text for text in re.findall(r"```python\n(.*?)```", SHIP, flags=re.DOTALL) if "PIL" in text)
    assert len(code.splitlines()) <= 21
    assert not re.search(r"import.*(torch|timm|disk_kd)\b", code)
    (tmp_path / "student.onnx").write_bytes(onnx_file.read_bytes())
    expected = of_api(onnx_file, photos / "test" / "bee")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for one in expected[:8]:
        (tmp_path / "photo.jpg").write_bytes(Path(one.path).read_bytes())
        exec(code, {})
        name, probability = capsys.readouterr().out.rsplit(maxsplit=1)
        assert name == one.classes[0]
        assert float(probability) == pytest.approx(one.probabilities[0], abs=1e-4)
