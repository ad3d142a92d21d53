"""Where a run computes."""

from __future__ import annotations

import torch

from disk_kd.data import AnySplit, Split
from disk_kd.errors import ConfigError, one_line


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # what random states and waits are about, where no device is named
    except Exception as error:  # a device that torch knows and has not fails in many ways
        said = one_line(error).partition(". ")[0]
        raise ConfigError(f"no device {name!r} here ({said}); give cpu, cuda or auto") from None
    return device


def place(split: AnySplit, device: torch.device) -> AnySplit:
    """The split on the device; on the host where it is streamed, or would take over half of the free device memory."""
    if not isinstance(split, Split) or device.type != "cuda":
        return split.to(device)
    return split if split.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2 else split.to(device)


def inference_batch(device: torch.device) -> int:
    """Images at a time where no gradients are kept: a CPU is as fast with few, and activations are large."""
    return 200 if device.type == "cpu" else 1000
