"""int8 for torch.export: torchao's PT2E quantisation with the x86 quantiser."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from io import BytesIO, StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from disk_kd.errors import ModelError, one_line
from disk_kd.export.quantise import Choice, layers_with_weights

CHOICES = (
    Choice("uint8 activations, 8-bit weights"),
    Choice("uint8 activations, 8-bit weights, first and last layer in float", float_ends=True),
)
_BATCH = 64


class TorchQuantiser:
    """A model that is ready to be quantised for torch.export.

    Args:
        model: the model to trace, in eval mode.
        images_NCHW: calibration images, as the model takes them.
        description: text that `torch.export.save` puts into the file, by name.

    Raises:
        ModelError: the model cannot be traced.
    """

    choices: Sequence[Choice] = CHOICES

    def __init__(self, model: nn.Module, images_NCHW: Tensor, description: dict[str, str]) -> None:
        self.library = f"torchao {version('torchao')}, PT2E, X86InductorQuantizer, per channel, histogram calibration"
        self._model, self._images, self._description = model, images_NCHW, description
        self._layers = list(layers_with_weights(model))
        self._program = traced(model, images_NCHW[:2])

    def write(self, choice: Choice, path: Path) -> tuple[str, ...]:
        """Write the quantised model to `path` and return the names of the layers that stay in float."""
        with _quietly("quantise"):
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            quantizer = x86.X86InductorQuantizer()
            quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
            kept = tuple(dict.fromkeys((self._layers[0], self._layers[-1]))) if choice.float_ends else ()
            for name in kept:
                quantizer.set_module_name_qconfig(name, None)
            prepared = prepare_pt2e(self._program.module(), quantizer)
            for images in self._images.split(_BATCH):
                prepared(images)
            converted = convert_pt2e(prepared)
            _drop_unused(converted)
            program = traced(converted, self._images[:2])
        save_program(program, path, self._description)
        return tuple(name.removeprefix("model.") for name in kept)


def _drop_unused(module: torch.fx.GraphModule) -> None:
    """Remove tensors that the graph does not read: the float weights that int8 weights replace."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in used]
    for name in names:
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)


def traced(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The model's graph for batches of any size. `images` are two of them."""
    if len(images) < 2:  # a batch of one would be taken for a constant
        images = images.expand(2, *images.shape[1:]).contiguous()
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def save_program(program: torch.export.ExportedProgram, path: Path, description: dict[str, str]) -> None:
    """Write a graph without notes on the Python code that it came from, which can be larger than the weights."""
    for node in program.graph.nodes:
        for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(note, None)
    content = BytesIO()  # because torch aborts the process where a disk is full
    torch.export.save(program, content, extra_files=dict(description))
    path.write_bytes(content.getbuffer())


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Silence the tools' logs and warnings inside the block.

    Raises:
        ModelError: the block raised an error.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the tools raise errors of every kind for a graph that they cannot take
        raise ModelError(
            f"torchao cannot {what} the graph for int8 ({one_line(error)}); leave --quantise out"
        ) from error
    finally:
        logging.disable(disabled)
