"""What ImageNet's recipes cost: rates measured here, and hours worked out for GPUs that are not.

python results/imagenet/rates.py measure > results/imagenet/measured.json
python results/imagenet/rates.py estimate
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from disk_kd.data import Augment, Loader, TimmAugment, load_dataset
from disk_kd.models import multiply_adds
from disk_kd.tasks import CETask, DiSKTask, KDTask
from disk_kd.teacher import Teacher

SIDES = {"500x375": (500, 375), "341x256": (341, 256)}  # the usual image of ImageNet, and shrunk once
IMAGES = 256
AUGMENTS = {
    "centre crop": TimmAugment(),
    "random crop, flip, jitter": TimmAugment(enabled=True),
    "and rand-m9": TimmAugment(enabled=True, auto_augment="rand-m9", interpolation="bicubic"),
}
PAIRS = {
    "resnet50-resnet18": ("resnet50", "resnet18", 224),
    "vit_large-vit_tiny": ("vit_large_patch16_384", "vit_tiny_patch16_224", 384),
    "vit_large_384-deit_tiny": ("vit_large_patch16_384", "deit_tiny_patch16_224", 384),
}
# What the estimate assumes of a GPU and its rent.
PEAK_FLOPS = 989e12  # H100 SXM, bf16, dense
REACHED = {"resnet50-resnet18": 0.2, "vit_large-vit_tiny": 0.4, "vit_large_384-deit_tiny": 0.4}
SCALING = {1: 1.0, 8: 0.95, 64: 0.9}
DOLLARS_PER_HOUR = 3.0
EPOCHS, SAMPLES = 100, 1_281_167


def write_images(root: Path, sides: tuple[int, int]) -> float:
    """JPEGs with some detail; returns their mean KB."""
    generator = np.random.default_rng(0)
    sizes = []
    for number in range(IMAGES):
        coarse = generator.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(pixels + generator.integers(-18, 19, pixels.shape), 0, 255).astype(np.uint8)
        path = root / "train" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)
        sizes.append(path.stat().st_size)
    return float(np.mean(sizes)) / 1024


def loading_rates(root: Path) -> dict[str, dict[str, float]]:
    """Images a second by augmentation and processes, after one epoch that starts the processes."""
    rates: dict[str, dict[str, float]] = {}
    for name, augment in AUGMENTS.items():
        for workers in (1, 2):
            data = load_dataset(
                "folder", root=root, image_size=224, validation=0, stream=True, timm=augment, workers=workers
            )
            loader = Loader(data.train, batch_size=64, mean=(0.5,) * 3, std=(0.25,) * 3, augment=Augment())
            seconds = []
            for number in range(3):
                start = time.perf_counter()
                for _ in loader.batches(number):
                    pass
                seconds.append(time.perf_counter() - start)
            rates.setdefault(name, {})[f"{workers} processes"] = round(IMAGES / min(seconds[1:]), 1)
    return rates


def step_rates() -> dict[str, dict[str, float]]:
    """Images a second of forward and backward on this CPU, with the teacher at each step."""
    rates: dict[str, dict[str, float]] = {}
    for pair in ("resnet50-resnet18",):
        teacher_name, student_name, _ = PAIRS[pair]
        images, targets = torch.randn(16, 3, 224, 224), torch.arange(16)
        for name, task_class in {"ce": CETask, "kd": KDTask, "disk": DiSKTask}.items():
            student = timm.create_model(student_name).to(memory_format=torch.channels_last)
            teacher = timm.create_model(teacher_name).to(memory_format=torch.channels_last)
            taught = () if name == "ce" else (Teacher.of(teacher, student, fold=True),)  # as a run has it
            task: Any = task_class(student, *taught)
            task.train()
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                task(images.contiguous(memory_format=torch.channels_last), targets)["loss"].backward()
                seconds.append(time.perf_counter() - start)
            rates.setdefault(pair, {})[name] = round(len(images) / min(seconds[1:]), 2)
    return rates


def measure() -> None:
    """Print what this machine does, as JSON."""
    facts: dict[str, Any] = {"cores": os.cpu_count(), "torch": torch.__version__, "loading_images_per_s": {}}
    for name, sides in SIDES.items():
        with tempfile.TemporaryDirectory() as folder:
            size = write_images(Path(folder), sides)
            facts["loading_images_per_s"][f"{name}, {size:.0f} KB"] = loading_rates(Path(folder))
    print(json.dumps(facts | {"step_images_per_s": step_rates()}, indent=1))


def estimate() -> None:
    """Print the table of docs/scale.md."""
    print("| recipe | GMACs a student image | 1 GPU | 8 GPUs | 64 GPUs |")
    print("|---|---|---|---|---|")
    for pair, (teacher_name, student_name, teacher_side) in PAIRS.items():
        student = multiply_adds(timm.create_model(student_name), (3, 224, 224))
        teacher = multiply_adds(timm.create_model(teacher_name), (3, teacher_side, teacher_side))
        for method, macs in {"CE": 3 * student, "KD, DiSK": 3 * student + teacher}.items():
            cells = []
            for count, share in SCALING.items():
                rate = count * share * REACHED[pair] * PEAK_FLOPS / (2 * macs)
                hours = EPOCHS * SAMPLES / rate / 3600
                cells.append(f"{rate:,.0f}/s, {hours:.2g} h, ${hours * count * DOLLARS_PER_HOUR:,.0f}")
            print(f"| {pair}, {method} | {macs / 1e9:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    {"measure": measure, "estimate": estimate}[sys.argv[1]]()
