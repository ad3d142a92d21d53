"""int8 for onnxruntime: its own static quantisation, with QuantizeLinear and DequantizeLinear nodes (QDQ)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disk_kd.errors import ModelError, one_line
from disk_kd.export.quantise import Choice

CHOICES = (
    Choice("uint8 activations, 7-bit weights", weight_bits=7),
    Choice("int8 activations, 8-bit weights", signed=True),
    Choice("int8 activations, 8-bit weights, first and last layer in float", signed=True, float_ends=True),
    Choice("uint8 activations, 8-bit weights", portable=False),
)
"""uint8 activations with 8-bit weights are not portable: on x86 processors without VNNI, sums of two products saturate
in 16 bits, and accuracy collapses (docs/ship.md)."""
_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_BATCH = 64


class OnnxQuantiser:
    """A float ONNX file that is ready to be quantised.

    Args:
        source: the file. Its batch norms are folded into the convolutions.
        images_NCHW: calibration images, as the file takes them.
        folder: folder for temporary files.

    Raises:
        ModelError: onnxruntime cannot prepare the graph, or no node of it has weights.
    """

    choices: Sequence[Choice] = CHOICES

    def __init__(self, source: Path, images_NCHW: Tensor, folder: Path) -> None:
        import onnx  # here, because it need not be installed
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.library = f"onnxruntime {version('onnxruntime')}, quantize_static, QDQ, per channel, min-max calibration"
        self._prepared, self._cache = folder / "prepared.onnx", folder / "ranges.json"
        self._images = images_NCHW
        with _one_line_errors("prepare"):
            self._metadata = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
            quant_pre_process(source, self._prepared)
            self._nodes = _weighted_nodes(onnx.load(self._prepared))
        if not self._nodes:
            raise ModelError("the graph has no convolution and no matrix product with fixed weights to quantise")

    def write(self, choice: Choice, path: Path) -> tuple[str, ...]:
        """Write the quantised model to `path` and return the names of the layers that stay in float."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        kept = {self._nodes[place][0] for place in (0, -1)} if choice.float_ends else set()
        activations = QuantType.QInt8 if choice.signed else QuantType.QUInt8
        with _one_line_errors("quantise"):
            quantize_static(
                self._prepared,
                path,
                _reader(self._images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=choice.weight_bits == 7,
                activation_type=activations,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(kept),
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self._cache,  # the images are run once for all choices
            )
            model = onnx.load(path)
            for key, value in self._metadata.items():
                if key not in {entry.key for entry in model.metadata_props}:
                    model.metadata_props.add(key=key, value=value)
            onnx.save(model, path)
        return _float_layers(model, self._nodes)


def _reader(images_NCHW: Tensor) -> Any:
    """The calibration images in the form that onnxruntime asks for."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images_NCHW.split(_BATCH))

        def get_next(self) -> Any:
            images = next(self.left, None)
            return None if images is None else {"images": images.numpy()}

    return Reader()


def _weighted_nodes(model: Any) -> list[tuple[str, str]]:
    """Node and layer names of the nodes with fixed weights, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        weights = [name for name in node.input[1:2] if name in constants]
        if node.op_type in _WEIGHTED and weights:
            named = weights[0].endswith(".weight")
            layer = weights[0].removesuffix(".weight").removeprefix("model.") if named else node.name
            found.append((node.name, layer))
    return found


def _float_layers(model: Any, nodes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The layers whose weights are not read through a DequantizeLinear node."""
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    inputs = {node.name: node.input for node in model.graph.node}
    return tuple(layer for name, layer in nodes if name in inputs and inputs[name][1] not in dequantised)


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Silence the tools' logs inside the block.

    Raises:
        ModelError: the block raised an error.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad():
            yield
    except Exception as error:  # the tools raise errors of every kind for a graph that they cannot take
        raise ModelError(
            f"onnxruntime cannot {what} the graph for int8 ({one_line(error)}); leave --quantise out"
        ) from error
    finally:
        logging.disable(disabled)
