"""Teachers that commands other than runs write: a folder that `--teacher.weights FOLDER` and `evaluate` take.

The folder holds `student.safetensors` with the metadata of a run's student, a `config.yaml` with the data, and a JSON
file of the command with what it did.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from disk_kd.build import STUDENT
from disk_kd.data import Dataset
from disk_kd.data.settings import DataSettings
from disk_kd.errors import RunError, one_line
from disk_kd.files import save_tensors, write_text
from disk_kd.models.about import METADATA
from disk_kd.options import plain
from disk_kd.recipe import CONFIG, WRITTEN_BY
from disk_kd.trained import normalisation


@dataclass(frozen=True)
class Written:
    """A teacher to write.

    Attributes:
        name: name of its model, from which `disk_kd.models.create_model` makes it with `options`.
        options: options of the model, without mean and std.
        model: the model.
        image_size: side in pixels of its images.
        data: the dataset that `disk-kd evaluate FOLDER` takes by default.
        description: what it is.
        imports: modules to import before the model is made.
    """

    name: str
    options: dict[str, Any]
    model: nn.Module
    image_size: int
    data: DataSettings
    description: str
    imports: tuple[str, ...] = ()


def check_output(folder: Path, file: str, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The result that the folder has already; None if it has none.

    Args:
        folder: the folder to write.
        file: name of the command's JSON file in it.
        facts: everything that the result depends on.

    Raises:
        RunError: the folder has something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        begun, summary = content["facts"], content["summary"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds something else ({one_line(error)}); give another --output") from None
    if begun != facts:
        names = sorted(name for name in facts.keys() | begun.keys() if facts.get(name) != begun.get(name))
        raise RunError(
            f"{folder} was written with another {', '.join(names)}; give another --output, or delete the folder"
        )
    return summary if (folder / STUDENT).is_file() else None


def write_teacher(
    folder: Path, written: Written, dataset: Dataset, file: str, facts: dict[str, Any], summary: dict[str, Any]
) -> None:
    """Write a teacher to a folder. The file of weights comes last: with it the folder is complete.

    Raises:
        OSError: the disk is full or not writable.
    """
    about = {
        "model": written.name,
        "options": written.options,
        "in_chans": dataset.in_chans,
        "image_size": written.image_size,
        "crop_pct": written.data.crop_pct,
        **dict(zip(("mean", "std"), normalisation(written.model), strict=True)),
        "classes": dataset.class_names,
    }
    student = {"name": written.name}
    tree = {"import": written.imports, "description": written.description, "data": written.data, "student": student}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / file, json.dumps({"facts": facts, "summary": summary}, indent=2) + "\n")
    text = yaml.safe_dump(plain(tree), sort_keys=False, allow_unicode=True)
    write_text(folder / CONFIG, f"{WRITTEN_BY}{version('disk-kd')}\n{text}")
    save_tensors(folder / STUDENT, written.model.state_dict(), {METADATA: json.dumps(about)})
