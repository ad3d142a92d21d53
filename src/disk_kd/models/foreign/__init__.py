"""Models of other libraries and exported files, named KIND:PATH.

| name                          | what it is                                            | runs code of the file |
|-------------------------------|-------------------------------------------------------|-----------------------|
| transformers:FOLDER_OR_NAME   | a Hugging Face image classifier and its processor     | no                    |
| onnx:FILE                     | an ONNX graph, run by onnxruntime                     | no                    |
| torch.export:FILE             | a program that `torch.export.save` wrote              | it can                |
| torchscript:FILE              | a module that `torch.jit.save` wrote                  | it can                |

The kind is always part of the name, and nothing is guessed from the ending of a file. So a command or a recipe shows
what will be loaded, and a file that can run code is loaded only where its kind is written out.

Each kind is a function in a file of its own. It returns a module with a `pretrained_cfg`, as timm's models have: mean,
std, input_size, num_classes and label_names, as far as the file states them. `strict_img_size` in it says that the
model takes images of no other size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from disk_kd.errors import CheckpointError, ModelError
from disk_kd.files import user_path
from disk_kd.models.foreign.exported import exported_program, script_module
from disk_kd.models.foreign.hugging_face import transformers_model
from disk_kd.models.foreign.onnx_file import onnx_model
from disk_kd.plugins import is_foreign

KINDS: dict[str, Callable[..., nn.Module]] = {
    "transformers": transformers_model,
    "onnx": onnx_model,
    "torch.export": exported_program,
    "torchscript": script_module,
}
"""The function that makes a model of each kind. It gets the path, num_classes, in_chans, pretrained and the options."""

_ENDINGS = {".onnx": "onnx", ".pt2": "torch.export", ".ts": "torchscript"}
_FOLDERS = frozenset({"transformers"})


def create_foreign(
    name: str, *, in_chans: int, num_classes: int | None = None, pretrained: bool = False, **options: Any
) -> nn.Module:
    """The model that KIND:PATH names.

    Args:
        name: KIND:PATH.
        num_classes, in_chans: number of classes and channels, for kinds that can be built with others than the file's.
            None: the file's number of classes.
        pretrained: for a folder of transformers: load its weights, else start from random ones. For a name on the hub:
            allow its download. Files of other kinds always have their weights.
        options: options of the kind.

    Raises:
        CheckpointError: there is no such file, or it is of another kind or damaged.
        ModelError: the model does not fit images (B, C, H, W), or takes no such options.
        ConfigError: the kind needs a package that is not installed.
    """
    check_file(name)
    kind, _, path = name.partition(":")
    if options and kind not in _FOLDERS:
        raise ModelError(f"{name} takes no option {min(options)!r}; the options of a file are mean, std and image_size")
    sizes = {"num_classes": num_classes, "in_chans": in_chans, "pretrained": pretrained}
    return KINDS[kind](path, **sizes, **options)


def check_file(name: str) -> None:
    """Refuse KIND:PATH without a path, or without a file there. Other names are left to others.

    Raises:
        ModelError, CheckpointError: there is no path, or no file.
    """
    kind, _, path = name.partition(":")
    if not is_foreign(name):
        return
    if not path:
        raise ModelError(f"{name} names no file; give {kind}:{'FOLDER' if kind in _FOLDERS else 'FILE'}")
    if kind not in _FOLDERS and not user_path(path).is_file():
        raise CheckpointError(f"{name}: there is no file {user_path(path)}; give {kind}:FILE")


def has_own_weights(name: str) -> bool:
    """Whether a name states trained weights: an exported file, or a folder of transformers."""
    path = name.partition(":")[2]
    return is_foreign(name) and (not name.startswith("transformers:") or user_path(path).is_dir())


def located(name: str) -> str:
    """The name with an absolute path, so that a run can be repeated from another folder. Other names are unchanged."""
    kind, _, path = name.partition(":")
    return f"{kind}:{user_path(path).absolute()}" if has_own_weights(name) and path else name


def short_name(name: str) -> str:
    """The name for a folder of runs: of KIND:PATH the last part of the path. Other names are unchanged."""
    return Path(name.partition(":")[2]).stem if is_foreign(name) else name


def is_file_kind(name: str) -> bool:
    """Whether a name refers to an exported file, which is never built from weights in another file."""
    return is_foreign(name) and name.partition(":")[0] not in _FOLDERS


def spelling(name: str) -> str | None:
    """How a file whose path was given as a model's name is to be named; None if it is no file of these kinds."""
    kind = _ENDINGS.get(Path(name).suffix)
    return None if kind is None else f"{kind}:{name}"
