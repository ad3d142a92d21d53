"""Peak memory of a model in its runtime: a script for a process of its own, which imports that runtime alone.

    python peak.py onnx|torch.export FILE B C H W

It prints two numbers of bytes: the peak with the runtime alone, and the peak after one batch.
"""

from __future__ import annotations

import resource
import sys


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_onnx(path: str, shape: list[int]) -> int:
    """Run one batch in onnxruntime. Returns the peak before the file is read."""
    import numpy
    import onnxruntime

    images, before = numpy.zeros(shape, numpy.float32), peak_bytes()
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    return before


def run_torch(path: str, shape: list[int]) -> int:
    """Run one batch in PyTorch. Returns the peak before the file is read."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the operators of int8 graphs

    images, before = torch.zeros(shape), peak_bytes()
    with torch.no_grad():
        torch.export.load(path).module()(images)
    return before


if __name__ == "__main__":
    kind, file, *sizes = sys.argv[1:]
    started = {"onnx": run_onnx, "torch.export": run_torch}[kind](file, [int(size) for size in sizes])
    print(started, peak_bytes())
