"""An exported student gives the student's logits, says what it is, and takes the place of nothing by accident."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import register_model
from torch import Tensor, nn

from disk_kd.build import STUDENT
from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.data.settings import DataSettings
from disk_kd.errors import DiskKDError
from disk_kd.export import EXTRA_FILE, FORMATS, ONNX_PACKAGES, export, latency
from disk_kd.hints import HINTS
from disk_kd.models import create_model, save_state_dict
from disk_kd.models.about import METADATA, read_about
from disk_kd.models.staged import CIFAR100_MEAN, CIFAR100_STD
from disk_kd.trained import trained_model
from processes import Command

__all__ = ["export_test_model"]

MODEL = "cifar_resnet10_xxxs"
DIGITS = {"in_chans": 1, "image_size": 8, "classes": list("0123456789")}
DOCS = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
RUN = "runs/demo/digits/kd/seed0"
HAS_ONNX = all(map(find_spec, ONNX_PACKAGES))
GREY = [sum(values) / 3 for values in (CIFAR100_MEAN, CIFAR100_STD)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A finished run on digits, where docs/export.md has one."""
    folder = tmp_path_factory.mktemp("export") / RUN
    assert main(["train", *tiny, f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def documented(run: Path) -> Path:
    """The folder in which the commands of docs/export.md ran."""
    folder = Path(str(run).removesuffix(RUN))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(latency, "BUDGET_S", 0.01)
        for command in re.findall(rf"^    disk-kd (.*{RUN}.*)$", DOCS, flags=re.MULTILINE):
            if HAS_ONNX or "onnx" not in command:
                assert main(command.split()) == 0
    return folder


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def student_of(weights: Path) -> nn.Module:
    about = read_about(weights)
    return trained_model(about["model"], about["options"], weights, 10, 1, about).eval()


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - GREY[0]) / GREY[1]


def write_weights(path: Path, model: nn.Module, name: str, **about: Any) -> Path:
    """A file as a run on digits writes it."""
    save_state_dict(path, model.state_dict(), {METADATA: json.dumps({"model": name, "options": {}, **DIGITS, **about})})
    return path


def says(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str) -> None:
    capsys.readouterr()
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


@torch.no_grad()
def test_the_documentation_runs(documented: Path, run: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(documented)
    blocks = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    assert len(blocks) == len(FORMATS)
    for code in blocks:
        if HAS_ONNX or "onnx" not in code:
            names: dict[str, Any] = {}
            exec(code, names)
            if "timm" in names:
                assert torch.equal(names["model"](pixels), student_of(run / STUDENT)(pixels))
            assert names.get("classes", DIGITS["classes"]) == DIGITS["classes"]


def test_safetensors_say_what_they_are(documented: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "export" / f"{MODEL}.safetensors"
    about = read_about(path)
    assert about.items() >= {"model": MODEL, **DIGITS, "input": "normalised"}.items()
    assert [*about["mean"], *about["std"]] == pytest.approx(GREY)
    capsys.readouterr()
    assert main(["evaluate", str(path), "--data.name=digits", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["nll"] == pytest.approx(json.loads((run / "summary.json").read_text())["test"]["nll"])


@torch.no_grad()
def test_half_precision_halves_the_file(
    run: Path, pixels: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "half.safetensors"
    capsys.readouterr()
    assert main(["export", str(run), "--half", f"--output={path}", "--certify=false"]) == 0
    told = re.fullmatch(rf"{path}: logits within (.*) of the student's \((.*) allowed\)\n", capsys.readouterr().out)
    assert told is not None
    difference, allowed = map(float, told.groups())
    assert 0 < difference < allowed
    dtypes = {key: value.dtype for key, value in load_file(path).items()}
    assert dtypes["conv1.weight"] == torch.float16
    assert dtypes["bn1.weight"] == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["half.safetensors"]
    torch.testing.assert_close(student_of(path)(pixels), student_of(run / STUDENT)(pixels), rtol=0, atol=allowed)


@torch.no_grad()
def test_the_timm_folder_loads_as_its_card_says(run: Path, pixels: Tensor, tmp_path: Path) -> None:
    folder = export(run, "timm", tmp_path / "student").path
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("hf-hub:OWNER/NAME", f"local-dir:{folder}"), names)
    assert torch.equal(names["model"](pixels), student_of(run / STUDENT)(pixels))
    grey = Image.new("L", (8, 8), 100)
    torch.testing.assert_close(names["transform"](grey), normalised(torch.full((1, 8, 8), 100 / 255)))
    assert names["model"].pretrained_cfg["label_names"] == DIGITS["classes"]
    test = json.loads((run / "summary.json").read_text())["test"]
    assert f"| test | {test['samples']} | {test['top1']:.2f} |" in card
    assert f"{test['nll_scaled']:.4f}" in card
    assert "| method | ce |" in card
    assert str(run) not in card


def test_the_card_of_weights_alone_tells_what_is_known(tmp_path: Path) -> None:
    model = create_model("resnet10t", num_classes=10, in_chans=1)
    weights = write_weights(tmp_path / "w.safetensors", model, "resnet10t")
    folder = export(weights, "timm").path
    card = (folder / "README.md").read_text()
    assert "| architecture | `resnet10t` |" in card
    assert "None" not in card
    assert "import disk_kd" not in card
    assert "## Measured" not in card
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] is None, "timm's own weights of that name have one"


@torch.no_grad()
def test_torch_export_with_normalisation_takes_pixels(documented: Path, run: Path) -> None:
    """On the test split its loss is that of the run's summary, so it normalises as training did."""
    path = run / "export" / f"{MODEL}.pt2"
    described = {EXTRA_FILE: ""}
    model = torch.export.load(path, extra_files=described).module()
    about = json.loads(described[EXTRA_FILE])
    assert (about["classes"], about["input"]) == (DIGITS["classes"], "pixels")
    data = DataSettings()
    split = load_dataset("digits", validation=data.validation, split_seed=0, limit_train=None, label_noise=0.0).test
    assert split is not None
    loss = nn.functional.cross_entropy(model(split.images.float() / 255), split.targets)
    assert float(loss) == pytest.approx(json.loads((run / "summary.json").read_text())["test"]["nll"], abs=1e-5)


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
@torch.no_grad()
def test_onnx_takes_batches_of_any_size(documented: Path, run: Path, pixels: Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "export" / f"{MODEL}.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert about["classes"] == DIGITS["classes"]
    assert [*about["mean"], *about["std"]] == pytest.approx(GREY)
    expected = student_of(run / STUDENT)(normalised(pixels))
    for images, logits in ((pixels, expected), (pixels[:1], expected[:1])):
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_simkd_student_keeps_its_projector(
    tmp_path: Path, pixels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    student, teacher = (create_model(name, num_classes=10, in_chans=1) for name in (MODEL, "cifar_resnet10_xxs"))
    hint = {"name": "simkd", "options": {"factor": 2}, "teacher": {"name": "cifar_resnet10_xxs", "options": {}}}
    model = HINTS["simkd"].prepare(student, teacher, hint["options"]).eval()
    weights = write_weights(tmp_path / "simkd.safetensors", model, MODEL, hint=hint)
    again = student_of(export(weights).path)
    assert torch.equal(again(pixels), model(pixels))
    program = torch.export.load(export(weights, "torch.export").path)
    torch.testing.assert_close(program.module()(pixels), model(pixels))
    says(capsys, [str(weights), "--format=timm"], "hint simkd keeps the teacher's classifier.* give --format safetens")


@torch.no_grad()
def test_a_distilled_transformer_averages_its_heads(tmp_path: Path, pixels: Tensor) -> None:
    name = "deit_tiny_distilled_patch16_224"
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model: Any = create_model(name, num_classes=10, in_chans=1, **options).eval()
    tokens = model.forward_features(pixels)
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    weights = write_weights(tmp_path / "vit.safetensors", model, name, options=options)
    program = torch.export.load(export(weights, "torch.export").path)
    torch.testing.assert_close(program.module()(pixels), expected)
    folder = export(weights, "timm").path
    torch.testing.assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels), expected)


class TroubledModel(nn.Module):
    """A classifier that cannot be traced or translated, or never gives the same logits twice."""

    num_features = 64

    def __init__(self, trouble: str, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.trouble, self.num_classes = trouble, num_classes
        self.pretrained_cfg = {"mean": CIFAR100_MEAN, "std": CIFAR100_STD}
        self.head = nn.Linear(64 * in_chans, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits_BK = self.head(x.flatten(1))
        if self.trouble == "branch" and logits_BK.sum() > 0:
            return -logits_BK
        if self.trouble == "operator":
            return torch.special.airy_ai(logits_BK)
        return logits_BK + torch.rand(()) if self.trouble == "noise" else logits_BK


@register_model
def export_test_model(pretrained: bool, trouble: str, num_classes: int, in_chans: int, **_: Any) -> TroubledModel:
    return TroubledModel(trouble, num_classes, in_chans)


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("noise", "safetensors", "safetensors export of export_test_model gives logits up to .* nothing was kept"),
        ("branch", "torch.export", r"torch\.export cannot trace export_test_model \(.*give --format safetensors"),
        ("operator", "onnx", r"torch\.onnx cannot translate export_test_model \(.*airy.*give --format safetensors"),
        ("inf", "safetensors", "gives logits that are not finite; export another run"),
    ],
)
def test_what_is_not_the_same_is_not_kept(
    trouble: str, kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "onnx" and not HAS_ONNX:
        pytest.skip("needs onnx, onnxscript and onnxruntime")
    model = TroubledModel(trouble, 10, 1)
    if trouble == "inf":
        nn.init.constant_(model.head.bias, torch.inf)
    name = "export_test_model"
    weights = write_weights(tmp_path / "w.safetensors", model, name, options={"trouble": trouble})
    says(capsys, [str(weights), f"--format={kind}", f"--output={tmp_path / 'out'}{FORMATS[kind].suffix}"], message)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("kind", ["safetensors", "timm", "torch.export"])
def test_a_full_disk_is_one_line(kind: str, run: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    output = f"--output={tmp_path / 'student'}{FORMATS[kind].suffix}"
    command = Command(["export", str(run), f"--format={kind}", output, "--certify=false"], before=limit)
    assert (command.wait(), command.errors.count("\n")) == (2, 1), command.errors
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_replacement_fails_stays(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(run, "timm", tmp_path / "student").path
    (folder / "README.md").write_text("old")
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target) == folder:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(run, "timm", folder, overwrite=True)
    assert (folder / "README.md").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_target_that_is_a_link_stays_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.safetensors").symlink_to("elsewhere")
    says(
        capsys, [str(run), f"--output={tmp_path / 'link.safetensors'}", "--overwrite"], "is a link, a device or a pipe"
    )


def test_a_target_is_replaced_only_on_demand(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = tmp_path / "student", tmp_path / "student.safetensors"
    for target, kind in ((folder, "timm"), (file, "safetensors")):
        arguments = [str(run), f"--format={kind}", f"--output={target}", "--certify=false"]
        assert main(["export", *arguments]) == 0
        says(capsys, arguments, f"{target.name} exists; give --overwrite")
        assert main(["export", *arguments, "--overwrite"]) == 0
    (folder / "mine.txt").touch()
    says(
        capsys,
        [str(run), "--format=timm", f"--output={folder}", "--overwrite"],
        "because it contains mine",
    )
    says(capsys, [str(run), "--format=timm", f"--output={file}", "--overwrite"], r"student\.safetensors is a file")
    wrong = tmp_path / "folder.pt2"
    wrong.mkdir()
    says(capsys, [str(run), "--format=torch.export", f"--output={wrong}", "--overwrite"], r"folder\.pt2 is a folder")
    says(capsys, [str(run), f"--output={run / STUDENT}", "--overwrite"], "is what is exported; give --output another")
    assert {path.name for path in tmp_path.iterdir()} == {"student", "student.safetensors", "folder.pt2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=onx"], "invalid choice: 'onx'.*'onnx'"),
        (["--format=timm", "--half"], "half needs the format safetensors, not timm"),
        (["--with-normalisation"], "safetensors holds weights and no graph.*give --format torch.export or onnx"),
        (["--output=student.pt"], r"output student\.pt must have a name that ends in \.safetensors"),
        (["--format=torch.export", "--output=a.onnx"], r"a\.onnx must have a name that ends in \.pt2"),
    ],
)
def test_options_that_do_not_fit(
    options: Sequence[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(capsys, [str(run), *options], message)


def test_an_unknown_format_names_the_nearest(run: Path) -> None:
    with pytest.raises(DiskKDError, match=r"no format 'torch'; nearest: torch\.export"):
        export(run, "torch")


def test_what_holds_no_student(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(capsys, [str(tmp_path)], f"no weights at {tmp_path / STUDENT}; give a finished run directory")
    says(capsys, [str(tmp_path / "none.safetensors")], "no weights at .*none.safetensors")
    save_state_dict(tmp_path / "bare.safetensors", create_model(MODEL, num_classes=10).state_dict())
    says(capsys, [str(tmp_path / "bare.safetensors")], "does not say its model and classes; give a run directory")


def test_missing_packages_are_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # so an import of it fails as if it were not installed
    says(capsys, [str(run), "--format=onnx"], "needs .*onnxruntime, not installed here; pip install onnx onnxscript")
