"""The export formats: how each is written and read.

Shapes: B batch, C channels of the image, H and W its height and width, K classes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from disk_kd.errors import ModelError
from disk_kd.export.card import model_card
from disk_kd.export.int8_torch import save_program, traced
from disk_kd.export.quantise import Classifier
from disk_kd.export.student import Normalised, Student
from disk_kd.models import convert, save_state_dict
from disk_kd.models.about import METADATA
from disk_kd.plugins import is_user_code
from disk_kd.trained import trained_model

EXTRA_FILE = f"{METADATA}.json"
"""Name of the description in a torch.export archive."""


@dataclass(frozen=True)
class Format:
    """How a format is written and read.

    Args:
        suffix: suffix of the file; empty for a folder.
        write: writes the student to a path. Its third argument is the model to trace, for formats with a graph.
        load: loads the classifier from a path.
        graph: whether it contains the computation, rather than weights alone.
        runtime: name of the runtime that it is for.
        packages: packages of that runtime.
    """

    suffix: str
    write: Callable[[Student, Path, nn.Module], None]
    load: Callable[[Student, Path], Classifier]
    graph: bool = False
    runtime: str = "PyTorch"
    packages: tuple[str, ...] = ()


def description(student: Student, traced: nn.Module) -> str:
    """The description in a file, as JSON."""
    about = {name: value for name, value in student.about.items() if name != "int8"}  # of the graph alone
    return json.dumps(about | {"input": "pixels" if isinstance(traced, Normalised) else "normalised"})


def _write_safetensors(student: Student, path: Path, traced: nn.Module) -> None:
    save_state_dict(path, student.model.state_dict(), {METADATA: description(student, traced)})


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


def _program(model: nn.Module, shape: Sequence[int], name: str) -> torch.export.ExportedProgram:
    """The model's graph, for batches of any size."""
    with _one_line_errors("torch.export cannot trace", name):
        return traced(model, torch.zeros(2, *shape))


def write_torch_export(model: nn.Module, shape: Sequence[int], path: Path, about: str, name: str) -> None:
    """Write the graph of a model for images of a shape (C, H, W), with a description.

    Raises:
        ModelError: it cannot be traced. `name` is its name in the message.
    """
    save_program(_program(model, shape, name), path, {EXTRA_FILE: about})


def write_onnx(model: nn.Module, shape: Sequence[int], path: Path, about: str, name: str) -> None:
    """The same as ONNX.

    Raises:
        ModelError: it cannot be traced or translated.
    """
    program = _program(model, shape, name)
    with _one_line_errors("torch.onnx cannot translate", name):
        translated = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
    assert translated is not None
    translated.model.metadata_props[METADATA] = about
    translated.save(path)


def _write_torch_export(student: Student, path: Path, traced: nn.Module) -> None:
    write_torch_export(traced, student.input_size, path, description(student, traced), student.architecture)


def _write_onnx(student: Student, path: Path, traced: nn.Module) -> None:
    write_onnx(traced, student.input_size, path, description(student, traced), student.architecture)


def open_torch_export(path: Path, threads: int = 0) -> Classifier:
    """The classifier of a torch.export archive. Its threads are those of PyTorch."""
    import torch.ao.quantization.fx._decomposed  # registers the operators of int8 graphs

    return torch.export.load(path).module()


def open_onnx(path: Path, threads: int = 0) -> Classifier:
    """The classifier of an ONNX file in onnxruntime, with this number of threads; 0: one for each core."""
    import onnxruntime  # here, because it need not be installed

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def _one_line_errors(what: str, name: str) -> Iterator[None]:
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
        raise ModelError(f"{what} {name} ({reason}); give --format safetensors or timm") from error
    finally:
        logging.disable(disabled)


FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", _write_safetensors, _load_safetensors),
    "timm": Format("", _write_timm, _load_timm),
    "torch.export": Format(
        ".pt2", _write_torch_export, lambda _, path: open_torch_export(path), graph=True, runtime="torch.export"
    ),
    "onnx": Format(
        ".onnx",
        _write_onnx,
        lambda _, path: open_onnx(path),
        graph=True,
        runtime="onnxruntime",
        packages=("onnx", "onnxruntime"),
    ),
}
