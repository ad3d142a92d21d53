"""Programs of `torch.export` and TorchScript modules as frozen models.

Loading or running such a file can run code that its writer chose. `torch.export.load` unpickles parts of its archive
and resolves operators by name; TorchScript is a program. So these files are loaded only where the user names their
kind, and only files from a source that the user trusts should be.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.errors import CheckpointError, ModelError, one_line
from disk_kd.files import user_path
from disk_kd.logits import logits_of
from disk_kd.models.foreign.files import DESCRIPTION, described, file_hash, in_batches, quiet, sized


class FileModel(nn.Module):
    """Maps images (B, C, H, W) to the logits of a program that a file holds.

    The program keeps its mode and its precision: `train`, autocast and memory formats do not change it.

    Args:
        program: the callable module.
        batch_size: the only batch size that it takes; None: any.
        sha256: hash of the file (`file_hash`). It covers the graph, which the state of the program does not hold.
        settings: `pretrained_cfg`.
        in_chans: C.
        moved: makes the program for another device; None: the program moves as modules do.
    """

    sha256: Tensor

    def __init__(
        self,
        program: nn.Module,
        batch_size: int | None,
        sha256: Tensor,
        settings: dict[str, Any],
        in_chans: int,
        moved: Callable[[torch.device], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.program = _frozen(program)
        self.batch_size = batch_size
        self.pretrained_cfg = settings
        self.in_chans = in_chans
        self.num_classes = settings.get("num_classes")
        self._moved = moved
        self.register_buffer("sha256", sha256)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, K)."""
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return in_batches(self._run, images_BCHW.float().contiguous(), self.batch_size)

    def _run(self, images_BCHW: Tensor) -> Tensor:
        return logits_of(self.program(images_BCHW), self)

    def train(self, mode: bool = True) -> FileModel:
        """Sets no mode but its own flag: the program was traced in one mode, and an exported one refuses others."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FileModel:
        """Moves to another device. Types and memory formats stay those of the file."""
        device = fn(self.sha256).device
        if device != self.sha256.device:
            self.sha256 = self.sha256.to(device)
            self.program = _frozen(self.program.to(device) if self._moved is None else self._moved(device))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FileModel:
        """The model itself: nothing of it ever changes."""
        return self


def exported_program(path: str, *, num_classes: int | None, in_chans: int, pretrained: bool) -> FileModel:
    """The program of a file that `torch.export.save` wrote.

    Args:
        path: the file.
        num_classes: not used: the file states its classes.
        in_chans: channels of the data.
        pretrained: not used: the file has its weights.

    Raises:
        CheckpointError: the file is of another kind or damaged.
        ModelError: the program does not take one batch of images.
    """
    name, file = f"torch.export:{path}", user_path(path)
    _check_archive(name, file, ("models/model.json", "serialized_exported_program.json"), "torch.export.save")
    extra = {DESCRIPTION: ""}
    with quiet():
        program = _read(name, lambda: torch.export.load(file, extra_files=extra))
    inputs = program.graph_signature.user_inputs
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs
    ]
    if len(shapes) != 1 or len(inputs) != 1:
        raise ModelError(f"{name} takes {len(inputs)} inputs; one batch of images (B, C, H, W) is expected")
    batch, size = sized(name, shapes[0], in_chans)
    settings = {**described(extra[DESCRIPTION]), **size}

    def moved(device: torch.device) -> nn.Module:
        from torch.export.passes import move_to_device_pass  # here, because it is rarely needed

        return move_to_device_pass(program, device).module()

    return FileModel(program.module(), batch, file_hash([file]), settings, in_chans, moved)


def script_module(path: str, *, num_classes: int | None, in_chans: int, pretrained: bool) -> FileModel:
    """The TorchScript module of a file that `torch.jit.save` wrote.

    Args:
        path: the file.
        num_classes: not used: the file has its classes.
        in_chans: channels of the data.
        pretrained: not used: the file has its weights.

    Raises:
        CheckpointError: the file is of another kind or damaged.
    """
    name, file = f"torchscript:{path}", user_path(path)
    _check_archive(name, file, ("code/",), "torch.jit.save")
    extra = {DESCRIPTION: ""}
    with quiet():
        module = _read(name, lambda: torch.jit.load(str(file), map_location="cpu", _extra_files=extra))
    with suppress(RuntimeError, AttributeError):  # a frozen module has no mode
        module.eval()
    getattr(module, "forward", None)  # the first access sets it, which would change the hash of the structure later
    return FileModel(module, None, file_hash([file]), described(extra[DESCRIPTION]), in_chans)


def _frozen(program: nn.Module) -> nn.Module:
    """The program, of whose weights none is trained. TorchScript has no `requires_grad_` for a whole module."""
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    return program


def _read(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # torch raises errors of every kind for a file that does not fit
        raise CheckpointError(
            f"{name} cannot be loaded ({one_line(error)}); export it again with this version of torch, and import the"
            " modules that its outputs need with --import"
        ) from error


def _check_archive(name: str, file: Path, parts: tuple[str, ...], writer: str) -> None:
    """Refuse a file of another kind before anything of it is loaded."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{name} is not an archive that {writer} wrote ({one_line(error)}); give a file of this kind, or"
            " --teacher.weights FILE for a file of weights"
        ) from error
    # Entries are in one folder, named like the file; before torch 2.8 those of torch.export were in none.
    if not any(entry.startswith(parts) or entry.partition("/")[2].startswith(parts) for entry in entries):
        raise CheckpointError(
            f"{name} is not an archive that {writer} wrote: it has no {parts[0]}; give a file of this kind, or"
            " --teacher.weights FILE for a file of weights"
        )
