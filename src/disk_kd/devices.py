"""The device of a run."""

from __future__ import annotations

import torch

from disk_kd.data import AnySplit, Split
from disk_kd.errors import ConfigError, one_line


def pick_device(name: str) -> torch.device:
    """The device with that name. "auto" takes the accelerator if there is one.

    Raises:
        ConfigError: there is no such device.
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
            torch.cuda.set_device(device)  # random states and synchronisation use the current device
    except Exception as error:  # torch raises many kinds of errors for a missing device
        reason = one_line(error).partition(". ")[0]
        raise ConfigError(f"no device {name!r} here ({reason}); give cpu, cuda or auto") from None
    return device


def place(split: AnySplit, device: torch.device) -> AnySplit:
    """The split on the device. It stays on the host if it is streamed, or would take over half of the free device
    memory.
    """
    if not isinstance(split, Split) or device.type != "cuda":
        return split.to(device)
    return split if split.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2 else split.to(device)


def inference_batch(device: torch.device) -> int:
    """Batch size without gradients. A CPU is as fast with few images, and activations take much memory."""
    return 200 if device.type == "cpu" else 1000
