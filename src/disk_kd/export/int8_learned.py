"""int8 with the ranges that fake quantisation learned in training (`train.quantise int8`), for every format."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from disk_kd.export.formats import FORMATS
from disk_kd.export.quantise import Choice
from disk_kd.export.student import Student
from disk_kd.fake_int8 import FakeInt8, find_layout, int8_copy
from disk_kd.logits import logits_of

CHOICES = (Choice("uint8 activations, 7-bit weights, ranges learned in training", weight_bits=7),)


class LearnedQuantiser:
    """A student that was trained with fake quantisation. The file rounds where training did, with the same numbers.

    Args:
        student: the student, whose metadata has the ranges.
        kind: the format, one with a graph.
        pixels: whether the file takes pixels in [0, 1].

    Raises:
        CheckpointError: the ranges do not fit the student.
    """

    choices: Sequence[Choice] = CHOICES
    library = "fake quantisation in training"

    def __init__(self, student: Student, kind: str, pixels: bool) -> None:
        self._student, self._kind, self._pixels = student, kind, pixels
        self._fake = FakeInt8(find_layout(student.model, student.input_size))
        self._fake.load_record(student.about["int8"])
        self._fake.active = True
        self._attached = copy.deepcopy(student.model)
        self._fake.attach(self._attached)

    def write(self, choice: Choice, path: Path) -> tuple[str, ...]:
        """Write the model in int8 to `path` and return the names of the layers that stay in float."""
        model = int8_copy(self._student.model, self._fake)
        FORMATS[self._kind].write(self._student, path, self._student.normalised(model) if self._pixels else model)
        if path.suffix == ".onnx":
            _drop_notes(path)
        return self._fake.layout.float_layers

    def as_trained(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of the fake-quantised student in PyTorch, for normalised images."""
        return logits_of(self._attached(images_NCHW), self._attached)


def _drop_notes(path: Path) -> None:
    """Remove the notes on the Python code that each node came from, which can be larger than the weights."""
    import onnx  # here, because it need not be installed

    model: Any = onnx.load(path)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)
