"""int8 files, their certificates, and the upload: what is written is measured, and what falls is not kept."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models import register_model
from torch import Tensor, nn

from disk_kd.build import STUDENT
from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.data.settings import DataSettings
from disk_kd.export import ONNX_PACKAGES, export, int8_onnx, latency, open_onnx, open_torch_export, read_student
from disk_kd.export.certificate import Evidence, sha256
from disk_kd.export.int8_onnx import OnnxQuantiser
from disk_kd.export.quantise import Choice, Measured, best_choice, layer_costs
from disk_kd.models import save_state_dict
from disk_kd.models.about import METADATA, read_about
from disk_kd.report import report

pytestmark = pytest.mark.skipif(not all(map(find_spec, (*ONNX_PACKAGES, "torchao"))), reason="needs onnx and torchao")
MODEL = "cifar_resnet10_xxxs"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A finished run of KD on digits, with its teacher beside it."""
    folder = tmp_path_factory.mktemp("ship")
    longer = [*tiny, "--train.epochs=6"]
    teacher = [*longer, "--student.name=cifar_resnet10_xxs", f"--output={folder / 'teacher'}"]
    assert main(["train", *teacher]) == 0
    learn = ["--teacher.name=cifar_resnet10_xxs", f"--teacher.weights={folder / 'teacher'}", "--method=kd"]
    assert main(["distill", *longer, *learn, f"--output={folder / 'kd'}"]) == 0
    return folder / "kd"


@pytest.fixture(scope="module")
def int8(run: Path) -> Path:
    """The run's student as int8 ONNX, by the command of the documentation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "BUDGET_S", 0.01)
        assert main(["export", str(run), "--format=onnx", "--quantise=int8", "--max-drop=5"]) == 0
    return run / "export" / f"{MODEL}-int8.onnx"


def certificate_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f"{path.name}.certificate.json").read_text())


def test_images(run: Path) -> tuple[Tensor, Tensor]:
    split = load_dataset(DataSettings(limit_train=120)).test
    assert split is not None
    about = read_student(run).about
    return (split.images.float() / 255 - about["mean"][0]) / about["std"][0], split.targets


test_images.__test__ = False  # type: ignore[attr-defined]


def says(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


def test_onnxruntime_gives_the_accuracy_of_the_certificate(run: Path, int8: Path) -> None:
    certificate, (images, targets) = certificate_of(int8), test_images(run)
    guesses = open_onnx(int8)(images).argmax(1)
    stated = certificate["splits"]["test"]
    assert stated["samples"] == len(targets)
    assert stated["top1"] == pytest.approx(100 * float((guesses == targets).double().mean()))
    student = read_student(run)
    with torch.no_grad():
        same = guesses == student.model(images).argmax(1)
    assert stated["agreement_float"] == pytest.approx(100 * float(same.double().mean()))
    summary = json.loads((run / "summary.json").read_text())
    assert certificate["float"]["splits"]["test"]["top1"] == pytest.approx(summary["test"]["top1"])
    assert certificate["float"]["splits"]["validation"]["nll"] == pytest.approx(summary["validation"]["nll"], rel=1e-5)
    assert certificate["drop_points"]["test"] == pytest.approx(summary["test"]["top1"] - stated["top1"])
    assert 0 < stated["agreement_teacher"] <= 100


def test_the_certificate_says_what_was_measured(int8: Path) -> None:
    certificate = certificate_of(int8)
    assert certificate["sha256"] == sha256(int8)
    assert certificate["bytes"] == int8.stat().st_size < certificate["float_bytes"]
    rows = certificate["latency"]
    assert {(row["model"], row["runtime"]) for row in rows} == {
        (model, "onnxruntime") for model in ("export", "float", "teacher")
    }
    assert {row["batch"] for row in rows} == {1, 32}
    assert all(0 < row["median_ms"] <= row["p95_ms"] for row in rows)
    assert certificate["peak_memory"]["model_bytes"] > 0
    choices = certificate["quantisation"]["choices"]
    assert [choice["chosen"] for choice in choices].count(True) == 1
    (with_float,) = (choice for choice in choices if "first and last" in choice["name"])
    assert with_float["float_layers"] == ["conv1", "linear"]
    assert certificate["quantisation"]["calibration_images"] == 120, "all training images, as there are fewer than 256"
    assert certificate["versions"].keys() >= {"onnxruntime", "torch"}


def test_the_graph_computes_in_int8_and_keeps_its_description(int8: Path) -> None:
    import onnx

    model = onnx.load(int8)
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}[METADATA])
    assert about["classes"] == list("0123456789")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") > kinds.count("Conv")
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    in_float = {node.input[1].removesuffix(".weight") for node in convolutions if node.input[1] not in dequantised}
    assert len(convolutions) == 12
    assert in_float == {*certificate_of(int8)["quantisation"]["float_layers"]} - {"linear"}


def test_torch_export_in_int8_takes_pixels(run: Path, tmp_path: Path) -> None:
    done = export(run, "torch.export", tmp_path / "s.pt2", int8=True, with_normalisation=True, calibration=64)
    images, _ = test_images(run)
    about = read_student(run).about
    pixels = images * about["std"][0] + about["mean"][0]
    with torch.no_grad():
        guesses, before = open_torch_export(done.path)(pixels).argmax(1), read_student(run).model(images).argmax(1)
    assert float((guesses == before).double().mean()) > 0.95
    program = torch.export.load(done.path)
    weights = [value for value in program.state_dict.values() if value.dtype == torch.int8]
    weights += [value for value in program.constants.values() if getattr(value, "dtype", None) == torch.int8]
    assert sum(value.dim() == 4 for value in weights) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["s.pt2"]


def test_a_file_that_falls_too_far_is_not_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel in each block is large and meets small weights, so float gives the same and int8 has no room left."""
    monkeypatch.setattr(latency, "BUDGET_S", 0.01)
    monkeypatch.setattr(OnnxQuantiser, "choices", int8_onnx.CHOICES[:1])
    broken = tmp_path / "run"
    broken.mkdir()
    (broken / "summary.json").write_text((run / "summary.json").read_text())
    teacher = str(run.parent / "teacher")  # without it, its latency is not measured
    (broken / "config.yaml").write_text((run / "config.yaml").read_text().replace(teacher, str(tmp_path / "none")))
    weights = load_file(run / STUDENT)
    for block in {key.partition(".bn1")[0] for key in weights if key.startswith("layer") and ".bn1." in key}:
        for part in ("weight", "bias"):
            weights[f"{block}.bn1.{part}"][0] *= 1e4
        weights[f"{block}.conv2.weight"][:, 0] /= 1e4
    save_state_dict(broken / STUDENT, weights, {METADATA: json.dumps(read_about(run / STUDENT))})
    arguments = ["export", str(broken), "--format=onnx", "--quantise=int8", "--max-drop=0.5"]
    says(
        capsys, arguments, r"top-1 on \w+ falls by .* points, --max-drop allows 0.5; layers that cost most alone.*conv2"
    )
    assert not list((broken / "export").iterdir())


def test_an_old_certificate_does_not_stay_beside_a_new_file(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "s.safetensors.certificate.json"
    export(run, "safetensors", tmp_path / "s.safetensors")
    old.write_text("of another file")
    export(run, "safetensors", tmp_path / "s.safetensors", overwrite=True)
    assert not old.exists()


def test_nothing_to_measure_on_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evidence, "splits", {})
    says(capsys, ["export", str(run), f"--output={tmp_path / 'x.safetensors'}"], "has no validation and no test split")
    (tmp_path / "file").touch()
    weights = ["export", str(run / STUDENT), f"--output={tmp_path / 'file' / 'x.safetensors'}"]
    says(capsys, weights, "cannot write in .*file .*; give another --output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_layers_are_ranked_by_what_they_cost() -> None:
    """Only the second of two layers has an outlier, which takes its 8 bits."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        for part in model:
            part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
            part.bias.zero_()
    images = torch.randn(400, 8, generator=generator)
    with torch.no_grad():
        images[0, 0] = 0
        model[1].weight[:, 0] = 1e4
        model[0].weight[0] = 0  # the column meets zeros, so the float model does not change
        targets = model(images).argmax(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs = layer_costs(model, images, images, targets)
    assert [name for name, _ in costs] == ["1", "0"]
    assert costs[0][1] > costs[1][1] >= 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_pre_hooks for part in model)


def test_a_slower_choice_must_be_clearly_better() -> None:
    def measured(top1: float, portable: bool = True) -> Measured:
        return Measured(Choice("", portable=portable), (), top1, 0.0)

    assert best_choice([measured(90), measured(90.4), measured(99, portable=False)]) == 0
    assert best_choice([measured(90), measured(91), measured(91.3)]) == 1


class Product(nn.Module):
    """A classifier without a layer that int8 knows."""

    num_features = 10

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.pretrained_cfg = num_classes, {"mean": (0.5,), "std": (0.5,)}
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)[:, : self.num_classes]


@register_model
def ship_product_model(pretrained: bool, num_classes: int, in_chans: int, **_: Any) -> Product:
    return Product(num_classes)


def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, int8 = ["export", str(run), f"--output={tmp_path / 'x.onnx'}", "--format=onnx"], "--quantise=int8"
    says(capsys, ["export", str(run), int8], "int8 needs a graph, which the format safetensors has not")
    says(capsys, [*out, int8, "--max-drop=-1"], "--max-drop is a number of points from 0 to 100, not -1")
    says(capsys, [*out, int8, "--calibration=0"], "calibration.*must be from 1")
    weights = ["export", str(run / STUDENT), *out[2:]]
    says(capsys, [*weights, int8], "int8 is calibrated on the data of a run, and .* is a file; give the run directory")
    for name, text in (("colour", "name: cifar10\n  root: /nowhere"), ("none", "name: folder\n  root: /nowhere")):
        copy = tmp_path / name
        copy.mkdir()
        (copy / STUDENT).write_bytes((run / STUDENT).read_bytes())
        config = re.sub(
            r"^data:\n  name: digits\n(  root: null)?",
            f"data:\n  {text}",
            (run / "config.yaml").read_text(),
            flags=re.M,
        )
        (copy / "config.yaml").write_text(config)
        says(capsys, ["export", str(copy), *out[2:], int8], "int8 is calibrated on the run's data: .*no folder")
        says(capsys, ["export", str(copy), *out[2:]], "certificate.*no folder data.root /nowhere.*--certify false")
    product = tmp_path / "product"
    product.mkdir()
    (product / "config.yaml").write_text((run / "config.yaml").read_text())
    about = read_about(run / STUDENT) | {"model": "ship_product_model", "mean": [0.5], "std": [0.5]}
    save_state_dict(product / STUDENT, Product(10).state_dict(), {METADATA: json.dumps(about)})
    says(capsys, ["export", str(product), *out[2:], int8], "has no convolution and no linear layer")
    wide = read_about(run / STUDENT) | {"in_chans": 3}
    colour = tmp_path / "wide"
    colour.mkdir()
    (colour / "config.yaml").write_text((run / "config.yaml").read_text())
    tensors = load_file(run / STUDENT)
    tensors["conv1.weight"] = tensors["conv1.weight"].repeat(1, 3, 1, 1)
    save_state_dict(colour / STUDENT, tensors, {METADATA: json.dumps(wide)})
    says(capsys, ["export", str(colour), *out[2:], int8], "digits have 1 channels and side 8, the student takes 3")
    monkeypatch.setitem(sys.modules, "torchao", None)
    says(
        capsys, ["export", str(run), "--format=torch.export", int8], "needs torchao, not installed.*pip install torchao"
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    says(capsys, [*out, int8], "the format onnx needs onnxruntime, not installed here")
    assert not (tmp_path / "x.onnx").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_report_shows_exported_files(run: Path, int8: Path, tmp_path: Path) -> None:
    html = report([run], output=tmp_path / "report.html").read_text()
    section = html[html.index("Exported files") :]
    certificate = certificate_of(int8)
    for text in (f"{int8.name}, int8", "float student in onnxruntime", "teacher in onnxruntime"):
        assert text in section
    assert f"{certificate['splits']['test']['top1']:.2f}" in section


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the hub that an upload uses."""

    received: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.received[self.path] = (self.headers.get("Authorization"), body)
        answer: dict[str, Any] = {}
        if self.path.endswith("/preupload/main"):
            files = [each["path"] for each in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]}
        elif self.path.endswith("/commit/main"):
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/student/commit/{'0' * 40}", "commitOid": "0" * 40}
        elif self.path.endswith("/repos/create"):
            answer = {"url": f"http://{self.headers['Host']}/me/student", "name": "me/student"}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a local server with the hub's addresses received, by address."""
    from huggingface_hub import constants

    Hub.received = {}
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield Hub.received
        server.shutdown()
        thread.join()


def test_push_uploads_the_folder_with_its_card(
    run: Path,
    tmp_path: Path,
    hub: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "BUDGET_S", 0.01)
    arguments = ["export", str(run), "--format=timm", f"--output={tmp_path / 'student'}", "--push=me/student"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "Would push README.md" in capsys.readouterr().out
    assert not hub, "a dry run reaches no network"
    card = (tmp_path / "student" / "README.md").read_text()
    assert "| method | kd |" in card
    assert "| teacher | cifar_resnet10_xxs |" in card
    certificate = json.loads((tmp_path / "student" / "certificate.json").read_text())
    assert f"| {certificate['splits']['test']['top1']:.2f} |" in card.partition("## Certificate")[2]
    assert main([*arguments, "--overwrite", "--certify=false"]) == 0
    (commit,) = (value for address, value in hub.items() if address.endswith("/commit/main"))
    assert commit[0] == "Bearer hf_test"
    sent = [json.loads(line) for line in commit[1].splitlines()]
    assert {each["value"]["path"] for each in sent if each["key"] == "file"} == {
        *("README.md", "config.json", "model.safetensors")
    }
    says(capsys, ["export", str(run), "--push=me/student"], "--push uploads a timm folder, not safetensors")
    says(capsys, ["export", str(run), "--format=timm", "--push=student"], "'student' is not the name of a repository")
    says(capsys, ["export", str(run), "--dry-run"], "--dry-run needs --push")
    assert capsys.readouterr().out == ""


def test_a_hub_that_cannot_be_reached_leaves_the_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    arguments = ["export", str(run), "--format=timm", f"--output={tmp_path / 'student'}", "--push=me/student"]
    says(capsys, [*arguments, "--certify=false"], "cannot push to http://127.0.0.1:9/me/student .*student is complete")
    assert (tmp_path / "student" / "model.safetensors").is_file()
