"""An ONNX file as a frozen model, run by onnxruntime. No code of the file is run.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from disk_kd.errors import CheckpointError, ModelError, one_line
from disk_kd.files import user_path
from disk_kd.models.about import METADATA
from disk_kd.models.foreign.files import described, file_hash, in_batches, needed, quiet, sized

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxModel(nn.Module):
    """Maps images (B, C, H, W) to the first output of an ONNX graph, without gradients.

    It has no parameters. Its precision is that of the file: autocast does not change it. On the GPU it runs if
    onnxruntime was installed with CUDA (the package onnxruntime-gpu), else on the CPU.

    Args:
        session: of onnxruntime.
        batch_size: the only batch size that the graph takes; None: any.
        sha256: hash of the file (`file_hash`).
        settings: `pretrained_cfg`.
        in_chans: C.
    """

    sha256: Tensor

    def __init__(
        self, session: Any, batch_size: int | None, sha256: Tensor, settings: dict[str, Any], in_chans: int
    ) -> None:
        super().__init__()
        self._session = session
        self._input, self._output = session.get_inputs()[0], session.get_outputs()[0].name
        self.batch_size = batch_size
        self.pretrained_cfg = settings
        self.in_chans = in_chans
        self.num_classes = settings.get("num_classes")
        self.register_buffer("sha256", sha256)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, K), float32."""
        return in_batches(self._run, images_BCHW, self.batch_size)

    def _run(self, images_BCHW: Tensor) -> Tensor:
        pixels = images_BCHW.detach().float().contiguous().cpu().numpy().astype(_TYPES[self._input.type], copy=False)
        (output,) = self._session.run([self._output], {self._input.name: pixels})
        return torch.from_numpy(np.asarray(output)).to(images_BCHW.device, torch.float32)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModel:
        """The model itself: nothing of it ever changes, and a session cannot be copied."""
        return self


def onnx_model(path: str, *, num_classes: int | None, in_chans: int, pretrained: bool) -> OnnxModel:
    """The model of an ONNX file.

    Args:
        path: the file. Weights beside it, in external data files, are read too.
        num_classes: not used: the file states its classes.
        in_chans: channels of the data.
        pretrained: not used: the file has its weights.

    Raises:
        ConfigError: onnxruntime or onnx is not installed.
        CheckpointError: the file is no ONNX file, or is damaged.
        ModelError: the graph does not take one batch of images.
    """
    name, file = f"onnx:{path}", user_path(path)
    runtime, onnx = needed("onnxruntime", name, "onnx"), needed("onnx", name, "onnx")
    with quiet():
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        usable = [provider for provider in _PROVIDERS if provider in runtime.get_available_providers()]
        session = _read(name, lambda: runtime.InferenceSession(str(file), options, providers=usable))
        graph = _read(name, lambda: onnx.load(str(file), load_external_data=False)).graph
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        takes = ", ".join(f"{each.name} {each.type}" for each in inputs)
        raise ModelError(
            f"{name} takes the inputs {takes}; one input of floating-point images (B, C, H, W) is expected"
        )
    batch, size = sized(name, inputs[0].shape, in_chans)
    settings = {**described(session.get_modelmeta().custom_metadata_map.get(METADATA)), **size}
    shape = session.get_outputs()[0].shape
    if len(shape) == 2 and isinstance(shape[1], int):
        settings["num_classes"] = shape[1]
    return OnnxModel(session, batch, file_hash([file, *_beside(file, graph)]), settings, in_chans)


def _read(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # onnxruntime and protobuf raise errors of many kinds for a damaged file
        raise CheckpointError(
            f"{name} cannot be read as an ONNX model ({one_line(error)}); export it again, or give a file of another"
            " kind"
        ) from error


def _beside(file: Path, graph: Any) -> list[Path]:
    """The files with weights that an ONNX file refers to."""
    names = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return [file.parent / name for name in sorted(names)]
