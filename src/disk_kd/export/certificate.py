"""The certificate of an exported file: what it scores, how large and fast it is, on which machine.

Shapes: N samples, B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disk_kd.build import build_teacher, load_data
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Dataset, Loader, check_labels
from disk_kd.devices import inference_batch
from disk_kd.errors import DataError, DiskKDError
from disk_kd.export.quantise import Classifier, percentage
from disk_kd.export.student import Student
from disk_kd.logits import logits_of
from disk_kd.metrics import evaluate
from disk_kd.summary import environment

SUFFIX = ".certificate.json"
"""A certificate has the name of its file and this suffix."""
IN_FOLDER = "certificate.json"
"""Name of the certificate in a timm folder."""
_CPU = torch.device("cpu")
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


class Evidence:
    """The data and the teacher of a run, and the logits of its models.

    Args:
        folder: run directory.
        student: its student.

    Raises:
        ConfigError, DataError: the data is missing, or differs from the student's in classes, channels or size.
    """

    def __init__(self, folder: Path, student: Student) -> None:
        self.student = student
        self.config = RunConfig.read(folder)
        self.dataset: Dataset = load_data(self.config.data)
        size = self.dataset.in_chans, self.dataset.image_size
        if size != student.input_size[:2]:
            raise DataError(
                f"the images of {self.dataset.name} have {size[0]} channels and side {size[1]}, the student takes"
                f" {student.input_size[0]} channels and side {student.input_size[1]}; give a run with its own data"
            )
        check_labels(self.dataset.class_names, student.about["classes"])

    @cached_property
    def splits(self) -> dict[str, AnySplit]:
        """The validation and test splits, if the data has them."""
        found = {"validation": self.dataset.validation, "test": self.dataset.test}
        return {name: split for name, split in found.items() if split is not None and len(split)}

    def batches(self, split: AnySplit, pixels: bool) -> Loader:
        """The images of a split as evaluation prepares them: normalised, or as pixels in [0, 1]."""
        about = self.student.about
        mean, std = (about["mean"], about["std"])
        if pixels:
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        settings: dict[str, Any] = {"shuffle": False, "drop_last": False, "device": _CPU}
        return Loader(split, batch_size=inference_batch(_CPU), mean=mean, std=std, **settings)

    def logits(self, model: Classifier, split: AnySplit, pixels: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (N, K) of a model and the labels (N,) of a split."""
        outputs, targets = [], []
        with torch.no_grad():
            for batch in self.batches(split, pixels).batches(0):
                if len(batch.targets):
                    outputs.append(model(batch.images).float())
                    targets.append(batch.targets)
        return torch.cat(outputs), torch.cat(targets)

    @cached_property
    def float_logits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits and labels of the float student on each split."""
        return {name: self.logits(self.float_classifier, split) for name, split in self.splits.items()}

    def float_classifier(self, images: Tensor) -> Tensor:
        """The float student in PyTorch."""
        return logits_of(self.student.model(images), self.student.model)

    @cached_property
    def teacher(self) -> nn.Module | None:
        """The run's teacher on the CPU, for images that are normalised for the student; None if it has none, or its
        weights are missing.
        """
        if self.config.teacher is None:
            return None
        try:
            model: nn.Module = build_teacher(
                self.config, self.dataset, self.student.model, _CPU, torch.contiguous_format
            )
        except (DiskKDError, OSError):
            return None
        return model

    @cached_property
    def teacher_logits(self) -> dict[str, Tensor]:
        """Logits of the teacher on each split; empty without a teacher."""
        teacher = self.teacher
        if teacher is None:
            return {}
        return {
            name: self.logits(lambda images: teacher(images)["logits"], split)[0] for name, split in self.splits.items()
        }

    def training_images(self, count: int, pixels: bool) -> tuple[Tensor, Tensor]:
        """Training images without augmentation, evenly spaced, and their labels.

        Raises:
            DataError: there are none.
        """
        train = self.dataset.train
        if not len(train):
            raise DataError(f"{self.dataset.name} has no training images to calibrate with; give a run with its data")
        places = torch.linspace(0, len(train) - 1, min(count, len(train))).round().long()
        return self._prepared(train.subset(places), pixels)

    def compared_images(self, count: int, pixels: bool) -> tuple[str, Tensor, Tensor]:
        """Images to choose by and their labels, and the split that they come from: validation, else train."""
        split = self.dataset.validation
        if split is None or not len(split):
            return ("train", *self.training_images(count, pixels))
        places = torch.linspace(0, len(split) - 1, min(count, len(split))).round().long()
        return ("validation", *self._prepared(split.subset(places), pixels))

    def _prepared(self, split: AnySplit, pixels: bool) -> tuple[Tensor, Tensor]:
        batches = [batch for batch in self.batches(split, pixels).batches(0) if len(batch.targets)]
        if not batches:
            raise DataError(f"no image of {self.dataset.name} can be read to calibrate with; restore the images")
        return torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])


def scores(
    logits_NK: Tensor, targets_N: Tensor, float_NK: Tensor | None = None, teacher_NK: Tensor | None = None
) -> dict[str, Any]:
    """Metrics of `disk_kd.metrics.evaluate`, and the percentage of images with the same class as from other models."""
    metrics = evaluate(nn.Identity(), [(logits_NK, targets_N)], device="cpu", num_classes=logits_NK.shape[1])
    guesses_N, found = logits_NK.argmax(1), dict[str, Any](metrics.as_dict())
    if float_NK is not None:
        found["agreement_float"] = percentage(guesses_N == float_NK.argmax(1))
    if teacher_NK is not None:
        found["agreement_teacher"] = percentage(guesses_N == teacher_NK.argmax(1))
    return found


@dataclass(frozen=True)
class Certificate:
    """The content of a certificate.

    Attributes:
        content: what the JSON file holds.
    """

    content: dict[str, Any]

    @property
    def drops(self) -> dict[str, float]:
        """Top-1 of the float student minus that of the file, in points, by split."""
        return self.content["drop_points"]

    def text(self) -> str:
        """The certificate as JSON."""
        return json.dumps(self.content, indent=2) + "\n"


def certify(
    evidence: Evidence, classify: Classifier, pixels: bool, facts: Mapping[str, Any], packages: Sequence[str]
) -> Certificate:
    """Run an exported file on the validation and test splits and write down what it scores.

    Args:
        evidence: the run's data and models.
        classify: the file in the runtime that it is for.
        pixels: whether it takes pixels in [0, 1].
        facts: what else the certificate says of the file.
        packages: packages of its runtime, whose versions are recorded.
    """
    splits, floats, teachers = {}, {}, {}
    for name, split in evidence.splits.items():
        logits_NK, targets_N = evidence.logits(classify, split, pixels)
        float_NK, teacher_NK = evidence.float_logits[name][0], evidence.teacher_logits.get(name)
        splits[name] = scores(logits_NK, targets_N, float_NK, teacher_NK)
        splits[name]["images_sha256"] = split.fingerprint()
        floats[name] = scores(float_NK, targets_N, None, teacher_NK)
        if teacher_NK is not None:
            teachers[name] = scores(teacher_NK, targets_N)
    student = evidence.student
    return Certificate(
        {
            **facts,
            "data": evidence.dataset.name,
            "splits": splits,
            "drop_points": {name: floats[name]["top1"] - splits[name]["top1"] for name in splits},
            "float": {
                "model": student.about["model"],
                "weights_sha256": sha256(student.weights),
                "bytes": student.weights.stat().st_size,
                "splits": floats,
            },
            "teacher": _teacher_facts(evidence, teachers),
            **_machine(packages),
        }
    )


def _teacher_facts(evidence: Evidence, splits: Mapping[str, Any]) -> dict[str, Any] | None:
    if evidence.teacher is None:
        return None
    tensors = evidence.teacher.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"model": evidence.student.summary.get("teacher"), "bytes": size, "splits": dict(splits)}


def _machine(packages: Sequence[str]) -> dict[str, Any]:
    around = environment(_CPU)
    versions = around["versions"] | {name: version(name) for name in packages}
    return {"hardware": around["hardware"], "instructions": _instructions(), "versions": versions}


def _instructions() -> list[str]:
    """Instruction sets of the processor that matter for int8, as Linux names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}
    return [name for name in _INSTRUCTIONS if name in flags]


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            digest.update(piece)
    return digest.hexdigest()


def certificate_path(target: Path) -> Path:
    """Where the certificate of an exported file or timm folder lies."""
    return target / IN_FOLDER if target.is_dir() else target.with_name(target.name + SUFFIX)


def read_certificates(folder: Path) -> list[dict[str, Any]]:
    """The certificates in a folder of exports and in its timm folders, by name. Files of another form are left out."""
    paths = [*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*/{IN_FOLDER}")]
    found = []
    for path in sorted(paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and {"splits", "bytes", "latency", "float"} <= content.keys():
            found.append(content)
    return found
