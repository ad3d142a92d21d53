"""The export formats: how each is written and read.

Shapes: B batch, C channels of the image, H and W its height and width, K classes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from disk_kd.errors import ModelError
from disk_kd.export.card import model_card
from disk_kd.export.student import Normalised, Student
from disk_kd.models import convert, save_state_dict
from disk_kd.models.about import METADATA
from disk_kd.plugins import is_user_code
from disk_kd.trained import trained_model

EXTRA_FILE = f"{METADATA}.json"
"""Name of the description in a torch.export archive."""

Classifier = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to logits (B, K)."""


@dataclass(frozen=True)
class Format:
    """How a format is written and read.

    Args:
        suffix: suffix of the file; empty for a folder.
        write: writes the student to a path. Its third argument is the model to trace, for formats with a graph.
        load: loads the classifier from a path.
        graph: whether it contains the computation, rather than weights alone.
    """

    suffix: str
    write: Callable[[Student, Path, nn.Module], None]
    load: Callable[[Student, Path], Classifier]
    graph: bool = False


def _description(student: Student, traced: nn.Module) -> str:
    """The description in a file, as JSON."""
    return json.dumps(student.about | {"input": "pixels" if isinstance(traced, Normalised) else "normalised"})


def _write_safetensors(student: Student, path: Path, traced: nn.Module) -> None:
    save_state_dict(path, student.model.state_dict(), {METADATA: _description(student, traced)})


def write_half(student: Student, path: Path, traced: nn.Module) -> None:
    """Write the student as safetensors, with weights of convolutions and linear layers in half precision."""
    whole = path.with_name(f"whole-{path.name}")
    _write_safetensors(student, whole, traced)
    convert(whole, path, half=True)


def _load_safetensors(student: Student, path: Path) -> Classifier:
    about, options = student.about, student.timm_options()
    if "hint" not in about and not is_user_code(about["model"]):
        return timm.create_model(about["model"], checkpoint_path=path, **options).eval()
    classes = options["num_classes"]
    return trained_model(about["model"], about["options"], path, classes, about["in_chans"], about).eval()


def _write_timm(student: Student, path: Path, traced: nn.Module) -> None:
    data = {
        "input_size": student.input_size,
        "mean": student.about["mean"],
        "std": student.about["std"],
        "interpolation": "bicubic",
        "crop_pct": student.about.get("crop_pct", 1.0),
    }
    # Of the weights that timm has under this name, not of these.
    others = {key: None for key in ("tag", "license", "origin_url") if student.settings.get(key)}
    config = {"label_names": student.about["classes"], "pretrained_cfg": others}
    save_for_hf(student.model, str(path), model_config=config, data_config=data, safe_serialization=True)
    shutil.copymode(path / "config.json", path / "model.safetensors")  # safetensors lets only the owner read it
    (path / "README.md").write_text(model_card(student), encoding="utf-8")


def _load_timm(student: Student, path: Path) -> Classifier:
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()


def _program(student: Student, traced: nn.Module) -> torch.export.ExportedProgram:
    """The model's graph, for batches of any size."""
    image = torch.zeros(2, *student.input_size)  # two, because a batch of one would be taken for a constant
    batch = {0: torch.export.Dim("batch")}
    with _one_line_errors("torch.export cannot trace", student), torch.no_grad():
        return torch.export.export(traced, (image,), dynamic_shapes=(batch,))


def _write_torch_export(student: Student, path: Path, traced: nn.Module) -> None:
    described = {EXTRA_FILE: _description(student, traced)}
    content = BytesIO()  # because torch aborts the process where a disk is full
    torch.export.save(_program(student, traced), content, extra_files=described)
    path.write_bytes(content.getbuffer())


def _load_torch_export(student: Student, path: Path) -> Classifier:
    return torch.export.load(path).module()


def _write_onnx(student: Student, path: Path, traced: nn.Module) -> None:
    program = _program(student, traced)
    with _one_line_errors("torch.onnx cannot translate", student):
        translated = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
    assert translated is not None
    translated.model.metadata_props[METADATA] = _description(student, traced)
    translated.save(path)


def _load_onnx(student: Student, path: Path) -> Classifier:
    import onnxruntime  # here, because it need not be installed

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def _one_line_errors(what: str, student: Student) -> Iterator[None]:
    """Suppress logs and output inside the block, because torch prints the whole graph when it fails.

    Raises:
        ModelError: the block raised an error.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    except Exception as error:  # a model's own code can fail to be traced in any way at all
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = " ".join(str(first).split())[:300] or type(first).__name__
        raise ModelError(f"{what} {student.architecture} ({reason}); give --format safetensors or timm") from error
    finally:
        logging.disable(disabled)


FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", _write_safetensors, _load_safetensors),
    "timm": Format("", _write_timm, _load_timm),
    "torch.export": Format(".pt2", _write_torch_export, _load_torch_export, graph=True),
    "onnx": Format(".onnx", _write_onnx, _load_onnx, graph=True),
}
