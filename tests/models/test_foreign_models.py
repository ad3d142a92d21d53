"""Models of other libraries and exported files: one random ViT, from transformers and from three kinds of file."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from disk_kd.cli import main
from disk_kd.errors import CheckpointError, DiskKDError, ModelError
from disk_kd.models import check_logits, create_model, multiply_adds
from disk_kd.models.foreign.exported import FileModel
from disk_kd.models.settings import StudentSettings
from disk_kd.teacher import Teacher, TeacherStore, fixed_image_size, normalisation, weights_hash
from disk_kd.teacher.hashing import structure_hash

transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

NAMES = [str(digit) for digit in range(10)]
MEAN, STD = (0.4,), (0.3,)
STATED = "{mean: [0.4], std: [0.3]}"
DIGITS = ["--data.limit_train=60", "--data.limit_test=30", "--train.epochs=1", "--train.batch_size=16", "--quiet"]
DISTIL = ["distill", *DIGITS, "--student.name=cifar_resnet10_xxxs", "--data.views=1", "--teacher.store=true"]


class Logits(nn.Module):
    """The model with a tensor as its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ViT of transformers for digits, and the same model in each kind of file."""
    folder = tmp_path_factory.mktemp("foreign")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        id2label=dict(enumerate(NAMES)),
        label2id={name: label for label, name in enumerate(NAMES)},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.classifier.weight.data.mul_(20)  # else the logits of all images are nearly equal
    model.save_pretrained(folder / "vit")
    size = {"height": 8, "width": 8}
    processor = transformers.ViTImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD))
    processor.save_pretrained(folder / "vit")
    images, any_batch = torch.randn(2, 1, 8, 8), ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(Logits(model), (images,), dynamic_shapes=any_batch)
        torch.export.save(program, folder / "vit.pt2")
        one = torch.export.export(Logits(model), (images[:1],))  # a batch of one becomes a constant
        for name, exported in (("any", program), ("one", one)):
            torch.onnx.export(exported, dynamo=True, verbose=False).save(folder / f"{name}.onnx")
        torch.jit.save(torch.jit.trace(Logits(model), images), str(folder / "vit.ts"))
    return folder


def names(folder: Path) -> dict[str, str]:
    return {
        "transformers": f"transformers:{folder / 'vit'}",
        "onnx": f"onnx:{folder / 'any.onnx'}",
        "onnx, batches of one": f"onnx:{folder / 'one.onnx'}",
        "torch.export": f"torch.export:{folder / 'vit.pt2'}",
        "torchscript": f"torchscript:{folder / 'vit.ts'}",
    }


def made(name: str, **options: Any) -> nn.Module:
    stated = {} if name.startswith("transformers:") else {"mean": MEAN, "std": STD}
    stated |= {"image_size": 8} if name.startswith("torchscript:") else {}
    return create_model(name, num_classes=10, in_chans=1, pretrained=True, **(stated | options)).eval()


def refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: str) -> None:
    capsys.readouterr()
    assert main(list(arguments)) == 2, arguments
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


def test_all_kinds_give_the_logits_of_the_model_itself(vit: Path) -> None:
    own = transformers.ViTForImageClassification.from_pretrained(vit / "vit").eval()
    student = create_model("cifar_resnet10_xxxs", num_classes=10, in_chans=1)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    hashes = set()
    for kind, name in names(vit).items():
        model, again = made(name), made(name)
        assert fixed_image_size(model) == (8, 8), kind
        assert [*map(list, normalisation(model) or ())] == [[pytest.approx(0.4)], [pytest.approx(0.3)]], kind
        check_logits(model, (1, 8, 8), 10)
        with torch.no_grad():
            expected = own(images).logits
            assert expected.std(0).max() > 0.05  # the images differ
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
        assert weights_hash(model) == weights_hash(again), kind
        assert structure_hash(model) == structure_hash(again), kind
        hashes.add(weights_hash(model))
        assert (multiply_adds(model, (1, 8, 8)) > 0) == (not kind.startswith("onnx")), kind
        for precision in ("fp32", "bf16"):  # folding and autocast change nothing that is not the teacher's to change
            laid_out = model.to(memory_format=torch.channels_last)
            teacher = Teacher.of(laid_out, student, fold=True, precision=precision)
            logits = teacher(images)["logits"]
            assert logits.shape == (5, 10)
            assert teacher(torch.randn(3, 1, 16, 16))["logits"].shape == (3, 10)  # resized
            if precision == "fp32" or isinstance(model, FileModel):
                with torch.no_grad():
                    own_images = images.mul(teacher.scale).add(teacher.shift) if teacher.renormalises else images
                    torch.testing.assert_close(logits, own(own_images).logits, atol=1e-5, rtol=1e-5)
    assert len(hashes) == 5


def test_all_kinds_are_stored_alike_on_the_command_line(vit: Path, tmp_path: Path) -> None:
    stored: dict[str, Tensor] = {}
    for kind, name in names(vit).items():
        folder = tmp_path / str(len(stored))
        stated = [] if kind == "transformers" else [f"--teacher.options={STATED}"]
        if kind == "torchscript":
            stated = ["--teacher.options={mean: [0.4], std: [0.3], image_size: 8}"]
        command = ["store-teacher", *DIGITS[:4], "--data.views=1", "--student.name=cifar_resnet10_xxxs", "--quiet"]
        assert main([*command, f"--teacher.name={name}", *stated, f"--runs={folder}"]) == 0, kind
        (store,) = (folder / "teacher-store").iterdir()
        (ids,) = np.isfinite(np.load(store / "logits.view0.npy")["largest"]).nonzero()  # the training images
        stored[kind] = TeacherStore.open(store).read(torch.from_numpy(ids), 0, "cpu")["logits"]
    own = stored.pop("transformers")
    assert len(own) == 60
    for kind, logits in stored.items():
        torch.testing.assert_close(logits, own, atol=1e-4, rtol=0, msg=lambda text, kind=kind: f"{kind}: {text}")


def test_a_student_of_transformers_trains_and_is_measured(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vit)
    teacher = [f"--teacher.name=onnx:{vit / 'one.onnx'}", f"--teacher.options={STATED}"]
    run = ["distill", *DIGITS, "--train.epochs=2", "--student.name=transformers:vit", f"--runs={tmp_path}"]
    assert main([*run, *teacher]) == 0
    (folder,) = tmp_path.glob("vit-kd/seed0")  # named for the folder, not for its path
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "summary.json").read_text())["test"]["nll"] == pytest.approx(own["nll"])
    for arguments in ([f"onnx:{vit / 'one.onnx'}", f"--model.options={STATED}"], ["--model.name=transformers:vit"]):
        assert main(["evaluate", *arguments, "--data.limit_test=30", "--json"]) == 0
    one, other = (next(iter(json.loads(line).values())) for line in capsys.readouterr().out.splitlines())
    assert one["samples"] == other["samples"] == 30
    assert one["nll"] == pytest.approx(other["nll"], abs=1e-4)


def test_what_an_export_of_ours_says_is_read(vit: Path, tmp_path: Path) -> None:
    from disk_kd.models.about import METADATA
    from disk_kd.models.foreign.files import described

    about = {"mean": [0.4], "std": [0.3], "classes": ["a", "b"]}
    assert described(json.dumps(about | {"input": "normalised"})) == {
        **{"mean": (0.4,), "std": (0.3,)},
        **{"label_names": ("a", "b"), "num_classes": 2},
    }
    pixels = described(json.dumps(about | {"input": "pixels"}))
    assert (pixels["mean"], pixels["std"]) == ((0.0,), (1.0,))
    assert described("not JSON") == described(None) == {}
    import onnx

    model = onnx.load(vit / "any.onnx")
    onnx.helper.set_model_props(model, {METADATA: json.dumps(about | {"classes": ["zero", *NAMES[1:]]})})
    onnx.save(model, tmp_path / "named.onnx")
    read = create_model(f"onnx:{tmp_path / 'named.onnx'}", num_classes=10, in_chans=1)
    assert read.pretrained_cfg == {
        **{"mean": (0.4,), "std": (0.3,), "input_size": (1, 8, 8), "strict_img_size": True},
        **{"label_names": ("zero", *NAMES[1:]), "num_classes": 10},
    }


def test_wrong_files_are_refused_in_one_line(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [*DISTIL, f"--runs={tmp_path}"]
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((vit / "any.onnx").read_bytes()[:1000])
    other = tmp_path / "other"
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "num_channels": 1}
    config = transformers.ResNetConfig(**sizes, num_labels=7)
    transformers.ResNetForImageClassification(config).save_pretrained(other)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(other)
    for name, message in (
        ("onnx:nothing.onnx", r"there is no file .*nothing.onnx; give onnx:FILE"),
        ("onnx:", "onnx: names no file; give onnx:FILE"),
        (str(vit / "any.onnx"), "for an exported file give its kind too: onnx:"),
        (f"onnx:{vit / 'vit.pt2'}", "vit.pt2 cannot be read as an ONNX model"),
        (f"onnx:{damaged}", "damaged.onnx cannot be read as an ONNX model"),
        (f"torch.export:{vit / 'vit.ts'}", "vit.ts is not an archive that torch.export.save wrote"),
        (f"torchscript:{vit / 'any.onnx'}", "any.onnx is not an archive that torch.jit.save wrote"),
        (f"transformers:{vit}", "cannot be read as an image classifier"),
        (f"transformers:{other}", "the teacher transformers:.*other has 7 classes, digits has 10"),
        (f"onnx:{vit / 'any.onnx'}", "record how images were normalised in training; give --teacher.options"),
    ):
        refused(capsys, message, *run, f"--teacher.name={name}", "--teacher.pretrained=true")
    refused(capsys, "teacher has no weights", *run, "--teacher.name=transformers:someone/model")
    refused(
        capsys,
        r"the student onnx:.* has no weights that can be trained; give it as --teacher.name",
        *["train", *DIGITS, f"--runs={tmp_path}", f"--student.name=onnx:{vit / 'any.onnx'}"],
    )
    with pytest.raises(ModelError, match=r"takes images of shape .* the data has 3 channels"):
        create_model(f"onnx:{vit / 'any.onnx'}", num_classes=10, in_chans=3)
    with pytest.raises(ModelError, match="takes no option 'width'"):
        create_model(f"onnx:{vit / 'any.onnx'}", num_classes=10, in_chans=1, width=3)
    with pytest.raises(ModelError, match="has no option 'hidden'; nearest: hidden_act, hidden_size"):
        create_model(f"transformers:{vit / 'vit'}", num_classes=10, in_chans=1, hidden=3)
    with pytest.raises(ModelError, match="image_size must be the side"):
        create_model("cifar_resnet10_xxxs", num_classes=10, image_size=0)


def test_a_folder_with_pickled_weights_or_code_is_refused(vit: Path, tmp_path: Path) -> None:
    for name, change in (("pickled", {}), ("code", {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((vit / "vit" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        (folder / "own.py").write_text("raise SystemExit('run')")
        torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="cannot be read as an image classifier"):
            create_model(f"transformers:{folder}", num_classes=10, in_chans=1, pretrained=True)


def test_a_missing_package_is_named(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, extra in (
        ("onnxruntime", f"onnx:{vit / 'any.onnx'}", "onnx"),
        ("transformers", f"transformers:{vit / 'vit'}", "transformers"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, module, None)
            with pytest.raises(DiskKDError, match=rf"needs the package {module}; pip install 'disk-kd\[{extra}\]'"):
                create_model(name, num_classes=10, in_chans=1)


def test_names_become_absolute(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vit)
    assert StudentSettings("transformers:vit").name == f"transformers:{vit / 'vit'}"
    assert StudentSettings("onnx:any.onnx").name == f"onnx:{vit / 'any.onnx'}"
    assert StudentSettings("transformers:owner/name").name == "transformers:owner/name"
    assert StudentSettings("resnet18").name == "resnet18"


def test_a_backbone_gives_features(vit: Path) -> None:
    model = create_model(f"transformers:{vit / 'vit'}", num_classes=0, in_chans=1, pretrained=True).eval()
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 16)
