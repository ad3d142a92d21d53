"""Files of weights: reading without running code, safe writing, conversion.

A file is either safetensors (suffix ``.safetensors``) or what `torch.save` writes (any other suffix:
``.pth``, ``.pt``, ``.pth.tar``, ``.bin``). Only tensors are read from either.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn

from disk_kd.errors import CheckpointError, RunError
from disk_kd.files import save_tensors

StrPath = str | os.PathLike[str]

# Where training programs put the weights, in order of preference; DiSK's release uses the first.
_WEIGHT_KEYS = ("base_state_dict", "state_dict_ema", "state_dict", "model", "model_state_dict", "net", "student")

# How many batches a batch norm has seen, which checkpoints of before PyTorch 0.4.1 do not hold.
_COUNTER = "num_batches_tracked"

# What DistributedDataParallel and torch.compile put before every key.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")

# Common in checkpoints beside the weights: settings and results. Other names are taken for code and refused.
_DISCARDED_NAMES = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
)


class _Discarded:
    """Stands for an unwanted object: it accepts any arguments and state, and keeps none.

    No foreign constructor is called with content of a file.
    """

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def load_state_dict(path: StrPath) -> dict[str, Tensor]:
    """Read the weights in a file to the CPU, without running code from the file.

    They are searched under ``base_state_dict``, ``state_dict_ema``, ``state_dict``, ``model``,
    ``model_state_dict``, ``net``, ``student``, at the top of the file, and last under its only key that holds a dict of
    tensors. ``module.`` and ``_orig_mod.`` before every key are removed.

    Raises:
        CheckpointError: the file is missing, a folder, damaged, would run code, or holds no tensors, or such as no
            model can take: sparse, quantised, complex, or without numbers.
    """
    path = _existing_file(path)
    content = _read(path)
    entries = content if isinstance(content, dict) else {}
    nested = [value for value in entries.values() if _is_state_dict(value)]
    for weights in (*(entries.get(key) for key in _WEIGHT_KEYS), content, *(nested if len(nested) == 1 else ())):
        if _is_state_dict(weights):
            _check_plain(path, weights)
            return _without_wrappers({key: value.detach() for key, value in weights.items()})
    for weights in (*(entries.get(key) for key in _WEIGHT_KEYS), content):
        if isinstance(weights, dict) and any(isinstance(value, Tensor) for value in weights.values()):
            other = next(key for key, value in weights.items() if not isinstance(value, Tensor))
            raise CheckpointError(
                f"{path} holds {other!r} among its weights, which is not a tensor; save model.state_dict() alone"
            )
    found = ", ".join(map(repr, entries))[:200] or f"a {type(content).__name__}"
    raise CheckpointError(
        f"{path} holds no weights: expected a dict of tensors at its top or under {', '.join(_WEIGHT_KEYS)}, "
        f"found {found}; save model.state_dict() and give that file"
    )


def load_weights(model: nn.Module, path: StrPath, *, strict: bool = True, leave_out: tuple[str, ...] = ()) -> None:
    """Load a file of weights into a timm model. If they do not fit, the model is not changed.

    A name before every key that the model does not know, such as Lightning's ``model.``, is taken off. Batch norms of
    before PyTorch 0.4.1 do not count their batches, and are loaded without.

    Args:
        model: a timm model.
        path: a file that `load_state_dict` reads.
        strict: refuse keys that only one side has. False ignores these, but shapes must be equal and at least one key
            must be shared.
        leave_out: beginnings of keys that are not read, such as those of the classifier (`classifier_prefixes`).

    Raises:
        CheckpointError: the file cannot be read, its keys or shapes differ from the model's, or it contains NaN.
    """
    weights = _without_prefix(load_state_dict(path), model.state_dict())
    weights = {key: value for key, value in weights.items() if not (leave_out and key.startswith(leave_out))}
    for key, values in weights.items():
        if values.isnan().any():
            raise CheckpointError(f"{key} in {path} is not a number; give weights of a run that did not diverge")
    misfit = _misfit(model, weights, strict)
    if misfit:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {misfit}")
    model.load_state_dict(weights, strict=False)


def save_state_dict(path: StrPath, state_dict: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, completely or not at all.

    Args:
        path: the file to write or replace; its folder must exist.
        state_dict: tensors of any device and layout; those that share memory are each written in full.
        metadata: short texts for the file's header (`read_metadata`).

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        save_tensors(Path(path), state_dict, metadata)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); give a file in a folder that exists, may be "
            "written to and has room"
        ) from error
    except RunError as error:  # the path is a folder, a link or a device
        raise CheckpointError(str(error)) from None


def read_metadata(path: StrPath) -> dict[str, str]:
    """Read the texts that `save_state_dict` wrote to a safetensors file; empty if there are none.

    Raises:
        CheckpointError: the file is missing, a folder, or not safetensors.
    """
    path = _existing_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(_why_unreadable(path, "safetensors", error)) from error


def convert(source: StrPath, destination: StrPath, *, half: bool = False) -> dict[str, int]:
    """Write the weights of a file as safetensors. The metadata of a safetensors file is kept.

    Args:
        source: a file that `load_state_dict` reads.
        destination: the file to write.
        half: store weights of convolutions and linear layers in half precision, which halves the file. Biases and norms
            keep their precision.

    Returns:
        ``tensors``, the number of tensors, and ``parameters``, the number of their values without BatchNorm's running
        statistics.

    Raises:
        CheckpointError: `source` cannot be read; `destination` exists, or is not a ``.safetensors`` file.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise CheckpointError(f"{destination}: expected a name that ends in .safetensors")
    if destination.exists():
        raise CheckpointError(f"{destination} exists already; remove it or give another name")
    weights = load_state_dict(source)
    if half:
        weights = {
            key: value.half() if value.dim() > 1 and value.is_floating_point() else value
            for key, value in weights.items()
        }
    save_state_dict(destination, weights, read_metadata(source) if Path(source).suffix == ".safetensors" else None)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(value.numel() for key, value in weights.items() if not key.endswith(statistics))
    return {"tensors": len(weights), "parameters": parameters}


def _existing_file(path: StrPath) -> Path:
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the file of weights in it")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; give a .safetensors file or one written by torch.save")
    if not path.is_file():  # reading a pipe would wait for ever
        raise CheckpointError(f"{path} is a device or a pipe; give a file of weights")
    try:
        path.open("rb").close()
    except OSError as error:  # safetensors would say that there is no such file
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return path


def _read(path: Path) -> Any:
    kind = "safetensors" if path.suffix == ".safetensors" else "torch.save"
    try:
        if kind == "safetensors":
            return safetensors.torch.load_file(path)
        safe = torch.serialization.safe_globals([(_Discarded, name) for name in _DISCARDED_NAMES])
        with safe, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how torch reads tensors that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise CheckpointError(_why_unreadable(path, kind, error)) from error


def _why_unreadable(path: Path, kind: str, error: Exception) -> str:
    if "TorchScript" in str(error):
        return (
            f"{path} is a TorchScript archive, which holds code; only tensors are read: save model.state_dict() with"
            " torch.save and give that file"
        )
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return (
            f"{path} holds {code[1]!r}, code that would run on loading, and was not loaded; "
            "only tensors are read: save model.state_dict() with torch.save and give that file"
        )
    return (
        f"{path} is not a {kind} file or is damaged ({type(error).__name__}); copy or download it again, and "
        "name it .safetensors if and only if it is one"
    )


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _check_plain(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise an error for tensors that are not dense arrays of numbers."""
    for key, value in weights.items():
        kinds = {
            "sparse": value.layout != torch.strided,
            "quantised": value.is_quantized,
            "complex": value.is_complex(),
            "without numbers": value.is_meta,
        }
        if any(kinds.values()):
            kind = next(kind for kind, so in kinds.items() if so)
            raise CheckpointError(
                f"{key} in {path} is {kind}, a model takes dense real numbers; save model.state_dict() of a plain model"
            )


def _without_prefix(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without a common prefix of the keys, if a key without it is one of the model's `own`."""
    stripped = weights
    while not any(key in own for key in stripped):
        prefix = next(iter(stripped)).partition(".")[0] + "."
        if not all(key.startswith(prefix) for key in stripped):
            return weights
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def _without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            return _without_wrappers({key.removeprefix(prefix): value for key, value in weights.items()})
    return weights


def _misfit(model: nn.Module, weights: dict[str, Tensor], strict: bool) -> str:
    """The reason why weights do not fit a model; empty if they fit."""
    own = model.state_dict()
    shared = [key for key in own if key in weights]
    reshaped = [key for key in shared if own[key].shape != weights[key].shape]
    if reshaped and all(_other_classes(model, own[key], weights[key], key) for key in reshaped):
        theirs, ours = len(weights[reshaped[0]]), len(own[reshaped[0]])
        return (
            f"the weights have {theirs} classes, the model {ours}; create it with num_classes={theirs}, "
            f"then model.reset_classifier({ours}) gives it a new head"
        )
    shapes = [f"{key!r} is {list(weights[key].shape)}, not {list(own[key].shape)}" for key in reshaped]
    types = [f"{key!r} is {weights[key].dtype}" for key in shared if _loses_type(own[key], weights[key])]
    parts = [_first_of("other shapes: ", shapes), _first_of("other types: ", types)]
    if strict or not shared:
        missing = [key for key in own if key not in weights and not key.endswith(_COUNTER)]
        parts += [
            _first_of("missing in the file: ", [repr(key) for key in missing]),
            _first_of("unknown to the model: ", [repr(key) for key in weights if key not in own]),
        ]
        if prefix := _prefix_of(missing, weights):
            parts.append(f"the model's keys start with {prefix!r} in the file, but other keys do not")
    found = "; ".join(filter(None, parts))
    if not found:
        return ""
    owner = None if types else _owner(weights, getattr(model, "in_chans", 3))
    return f"{found}; {f'these weights are for {owner}' if owner else 'give weights of this architecture'}"


def _prefix_of(keys: list[str], weights: dict[str, Tensor]) -> str:
    """The common prefix of `keys` in the file; empty if there is none."""
    for key in weights:
        prefix = key.removesuffix(keys[0]) if keys else key
        if prefix != key and all(f"{prefix}{name}" in weights for name in keys):
            return prefix
    return ""


def _other_classes(model: nn.Module, own: Tensor, theirs: Tensor, key: str) -> bool:
    """Whether a tensor belongs to the model's classifier, for another number of classes."""
    of_classifier = key.startswith(classifier_prefixes(model))
    return of_classifier and theirs.dim() == own.dim() and theirs.shape[1:] == own.shape[1:]


def _loses_type(own: Tensor, theirs: Tensor) -> bool:
    """Whether a model's numbers would be read from integers, such as quantised weights."""
    return own.is_floating_point() and not theirs.is_floating_point()


def _owner(weights: dict[str, Tensor], in_chans: int) -> str | None:
    """The model of this package with these keys and shapes, for any number of classes; None if there is none."""

    def layout(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
        # A classifier's first size is its classes.
        return {key: value.shape[1:] for key, value in tensors.items() if not key.endswith(_COUNTER)}

    wanted = layout(weights)
    for name in timm.list_models("cifar_*"):
        if model_entrypoint(name).__module__.startswith("disk_kd."):
            with torch.device("meta"):
                if layout(timm.create_model(name, in_chans=in_chans).state_dict()) == wanted:
                    return name
    return None


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """The prefixes of the classifier's keys. timm's cfg holds one name, several or none."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _first_of(what: str, items: list[str]) -> str:
    more = f" and {len(items) - 1} more" if len(items) > 1 else ""
    return f"{what}{items[0]}{more}" if items else ""
