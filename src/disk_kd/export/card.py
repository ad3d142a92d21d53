"""The README.md of a model on the Hugging Face hub."""

from __future__ import annotations

import json
from typing import Any

from timm.models import is_model, model_entrypoint

from disk_kd.export.student import Student
from disk_kd.tables import as_markdown, markdown_table


def model_card(student: Student, certificate: dict[str, Any] | None = None) -> str:
    """A model card in Markdown with the hub's header: the model, its training, its metrics, and how to load it.

    Args:
        student: the model.
        certificate: content of the certificate of the exported file; None if there is none.
    """
    return "\n".join(
        [
            "---",
            "library_name: timm",
            "pipeline_tag: image-classification",
            "tags:",
            *(f"- {tag}" for tag in ("image-classification", "timm", "knowledge-distillation", "disk-kd")),
            "---",
            f"# {student.architecture}, {len(student.about['classes'])} classes",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in _facts(student).items() if value not in (None, "")),
            "",
            *_measured(student.summary),
            *([] if certificate is None else ["## Certificate", "", *certificate_lines(certificate), ""]),
            "## Use",
            "",
            *_usage(student),
            "",
        ]
    )


def _facts(student: Student) -> dict[str, Any]:
    """Facts about the model and its training for the card; None if unknown."""
    summary, about = student.summary, student.about
    mean, std = (", ".join(f"{value:.4f}" for value in about[name]) for name in ("mean", "std"))
    size = "x".join(map(str, student.input_size))
    return {
        "architecture": f"`{student.architecture}`",
        "options": json.dumps(about["options"]) if about["options"] else None,
        "input": f"{size}, pixels in [0, 1], less the mean ({mean}), divided by ({std})",
        "classes": f"{len(about['classes'])}; their names are in config.json (`label_names`)",
        "parameters": _number(summary.get("parameters")),
        "multiply-adds": _number(summary.get("multiply_adds")),
        "trained on": summary.get("data"),
        "training images": _number(summary.get("train_samples")),
        "method": " + ".join(filter(None, (summary.get("method"), student.hint))),
        "teacher": summary.get("teacher"),
        "epochs over the images": _number(summary.get("student_epochs")),
        "epochs before, of the weights it began with": _number(summary.get("start_epochs") or None),
        "seed": summary.get("seed"),
    }


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _measured(summary: dict[str, Any]) -> list[str]:
    """The lines of the card about the model's metrics; empty if nothing was measured."""
    rows = [
        f"| {split} | {m['samples']:,} | {m['top1']:.2f} | {m['top5']:.2f} | {m['nll']:.4f} | {m['ece']:.4f} |"
        for split in ("validation", "test")
        if (m := summary.get(split))
    ]
    if not rows:
        return []
    lines = ["| split | images | top-1 % | top-5 % | NLL | ECE |", "|---|---|---|---|---|---|", *rows, ""]
    test = summary.get("test", {})
    if "temperature" in test:
        lines += [
            f"With the logits divided by {test['temperature']:.3f}, which is best on the validation split, the test"
            f" NLL is {test['nll_scaled']:.4f}, the ECE {test['ece_scaled']:.4f}.",
            "",
        ]
    return ["## Measured", "", *lines]


def certificate_lines(certificate: dict[str, Any]) -> list[str]:
    """A certificate in Markdown: scores by split, latency, and on what they were measured."""
    scored = ["split", "images", "top-1 %", "top-5 %", "NLL", "ECE", "same class as float %", "as the teacher %"]
    rows = []
    for split, m in certificate["splits"].items():
        numbers = (f"{m['top1']:.2f}", f"{m['top5']:.2f}", f"{m['nll']:.4f}", f"{m['ece']:.4f}")
        agreement = (f"{m[key]:.2f}" if key in m else "" for key in ("agreement_float", "agreement_teacher"))
        rows.append([split, f"{m['samples']:,}", *numbers, *agreement])
    timed = [
        [
            each["model"],
            each["runtime"],
            str(each["batch"]),
            str(each["threads"]),
            f"{each['median_ms']:.2f}",
            f"{each['p95_ms']:.2f}",
        ]
        for each in certificate["latency"]
    ]
    size = f"{certificate['precision']}, {certificate['bytes']:,} bytes, SHA-256 `{certificate['sha256']}`"
    versions = ", ".join(f"{name} {value}" for name, value in certificate["versions"].items())
    return [
        f"`{certificate['file']}`: {size}. It ran in {certificate['runtime']}.",
        "",
        *markdown_table(scored, rows),
        "",
        *markdown_table(["model", "runtime", "images", "threads", "median ms", "95 % ms"], timed),
        "",
        f"Measured on {as_markdown(certificate['hardware'])} with {versions}.",
    ]


def _usage(student: Student) -> list[str]:
    """The lines of the card about loading the model."""
    ours = is_model(student.architecture) and model_entrypoint(student.architecture).__module__.startswith("disk_kd.")
    return [
        "```python",
        "import timm",
        *(["import disk_kd  # registers the architecture with timm"] if ours else []),
        "",
        'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"',
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
        "```",
    ]
