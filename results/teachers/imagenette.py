"""Measure teachers alone and averaged by probabilities and by logits, on the first photographs of each class.

    python results/teachers/imagenette.py TRAIN.tar VALIDATION.tar WEIGHTS.safetensors...

The tars hold Imagenette, `wordnet_id/file.jpg`. The files of weights are those of `efficientnet_lite.py`. They are
measured on the first 30 validation photographs of each class, at 224 pixels.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from disk_kd.arguments import parse_evaluation
from disk_kd.measure import TeacherEvaluation, teacher_logits
from disk_kd.metrics import Metrics, metrics_of
from disk_kd.teacher.ensemble import Average

PHOTOS = {"train": 1, "val": 30}
"""Photographs of each class. `disk-kd` needs training images to know the classes."""


def first_photos(source: Path, target: Path, count: int) -> None:
    """A tar with the first `count` photographs of each class."""
    seen: Counter[str] = Counter()
    with tarfile.open(source) as photos, tarfile.open(target, "w") as kept:
        for entry in filter(tarfile.TarInfo.isfile, photos):
            name = entry.name.split("/")[-2]
            seen[name] += 1
            if seen[name] <= count:
                kept.addfile(entry, photos.extractfile(entry))


def shown(name: str, metrics: Metrics) -> str:
    """A row of the table in docs/teachers.md."""
    return f"| {name} | {metrics.top1:.2f} % | {metrics.nll:.4f} | {metrics.ece:.4f} |"


def main(train: str, validation: str, *weights: str) -> None:
    """Print the table."""
    members = [{"name": Path(file).stem, "weights": str(Path(file).absolute()), "classes": "auto"} for file in weights]
    with tempfile.TemporaryDirectory() as folder:
        for (part, count), source in zip(PHOTOS.items(), (train, validation), strict=True):
            first_photos(Path(source), Path(folder) / f"{part}.tar", count)
        data = ["--data=folder", f"--data.root={folder}", "--data.image_size=224", "--data.crop_pct=0.875"]
        evaluation = parse_evaluation([f"--teacher={json.dumps(members)}", *data, "--split=validation"])
        assert isinstance(evaluation, TeacherEvaluation)
        names, logits, targets, _ = teacher_logits(evaluation)
    for name, logits_NC in zip(names, logits, strict=True):
        print(shown(name, metrics_of(logits_NC, targets)))
    for combine in ("probabilities", "logits"):
        print(shown(f"average of {combine}", metrics_of(Average([1.0] * len(logits), combine)(logits), targets)))


if __name__ == "__main__":
    main(*sys.argv[1:])
