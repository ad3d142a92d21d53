"""The commands that take a student elsewhere: convert, export and predict."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from disk_kd.commands.parsing import Parser, TableConsole, add_import, count, path
from disk_kd.errors import ConfigError, DataError
from disk_kd.export import CALIBRATION_IMAGES, FORMATS, MAX_DROP, certificate_path, check_name, export, push
from disk_kd.files import check_replaceable, replacing
from disk_kd.inference import (
    FORMATS as PREDICTION_FORMATS,
)
from disk_kd.inference import (
    calibration_text,
    check_output,
    check_paths,
    counted,
    image_files,
    listed_files,
    open_classifier,
    predict_files,
)
from disk_kd.inference import lines as prediction_lines
from disk_kd.models import convert


def convert_checkpoint(arguments: Sequence[str]) -> None:
    """Convert a file of weights, such as a released .pth.tar, to safetensors without running code in it."""
    parser = Parser(prog="disk-kd convert", description=convert_checkpoint.__doc__)
    parser.add_argument("checkpoint", type=path, help="File of weights to read.")
    parser.add_argument(
        "--output", type=path, help="File to write (default: beside the input, with suffix .safetensors)."
    )
    half = "Store convolutions and linear layers in half precision, for half the size."
    parser.add_argument("--half", action="store_true", help=half)
    options = parser.parse_args(arguments)
    if not options.checkpoint.is_file():
        raise ConfigError(f"no file of weights at {options.checkpoint}; give the file to convert")
    name = options.checkpoint.name.removesuffix(".tar")
    output = options.output or options.checkpoint.with_name(Path(name).stem + ".safetensors")
    check_replaceable(output)
    counts = convert(options.checkpoint, output, half=options.half)
    print(f"{output}: {counts['tensors']} tensors, {counts['parameters']:,} parameters")


def export_student(arguments: Sequence[str]) -> None:
    """Export a run's student to safetensors, timm, torch.export or ONNX, in float or int8, and certify it."""
    parser = Parser(prog="disk-kd export", description=export_student.__doc__)
    parser.add_argument("run", type=path, help="Run directory, or file of weights that a run wrote.")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="File format (default: safetensors).")
    parser.add_argument("--output", type=path, help="File or timm folder to write (default: RUN/export/MODEL.SUFFIX).")
    half = "For safetensors: store convolutions and linear layers in half precision, for half the size."
    parser.add_argument("--half", action="store_true", help=half)
    inside = "For torch.export and onnx: the exported model takes pixels in [0, 1] and normalises them."
    parser.add_argument("--with-normalisation", action="store_true", help=inside)
    parser.add_argument("--quantise", choices=("int8",), help="For torch.export and onnx: compute in 8-bit integers.")
    images = f"Training images that give the ranges of int8 activations (default: {CALIBRATION_IMAGES})."
    parser.add_argument("--calibration", type=count, default=CALIBRATION_IMAGES, metavar="N", help=images)
    certified = "Measure the file in its runtime and write a certificate beside it (default: true for a run directory)."
    parser.add_argument("--certify", choices=("true", "false"), help=certified)
    drop = f"Points of top-1 that a certified file may lose, on validation or test (default: {MAX_DROP:g})."
    parser.add_argument("--max-drop", type=float, default=MAX_DROP, metavar="POINTS", help=drop)
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export.")
    parser.add_argument("--push", metavar="USER/NAME", help="For timm: upload the folder to the Hugging Face hub.")
    parser.add_argument("--private", action="store_true", help="With --push: a new repository is private.")
    dry = "With --push: list what would be uploaded, without network."
    parser.add_argument("--dry-run", action="store_true", help=dry)
    add_import(parser)
    options = parser.parse_args(arguments)
    _check_push(options)
    certify = options.run.is_dir() if options.certify is None else options.certify == "true"
    done = export(
        options.run,
        options.format,
        options.output,
        half=options.half,
        with_normalisation=options.with_normalisation,
        overwrite=options.overwrite,
        imports=options.imports,
        int8=options.quantise == "int8",
        calibration=options.calibration,
        certified=certify,
        max_drop=options.max_drop,
    )
    allowed = "" if done.allowed is None else f" ({done.allowed:.1e} allowed)"
    print(f"{done.path}: logits within {done.difference:.1e} of the student's{allowed}")
    if done.certificate is not None:
        TableConsole().print(certificate_table(done.certificate.content))
        print(f"Certificate: {certificate_path(done.path)}")
    if options.push is not None:
        pushed = push(done.path, options.push, private=options.private, dry_run=options.dry_run)
        files = ", ".join(f"{name} ({size:,} bytes)" for name, size in pushed.files.items())
        print(f"{'Pushed' if pushed.done else 'Would push'} {files} to {pushed.url}")


def _check_push(options: argparse.Namespace) -> None:
    if options.push is None:
        for name in ("private", "dry_run"):
            if getattr(options, name):
                raise ConfigError(f"--{name.replace('_', '-')} needs --push USER/NAME; leave it out")
        return
    check_name(options.push)
    if options.format != "timm":
        raise ConfigError(f"--push uploads a timm folder, not {options.format}; give --format timm")


def certificate_table(certificate: dict[str, Any]) -> Table:
    """What an exported file scores, and how large and fast it is, beside the float student and the teacher."""
    table = Table(title=escape(f"{certificate['file']} ({certificate['precision']}) in {certificate['runtime']}"))
    splits, single = list(certificate["splits"]), dict[str, Any](justify="right")
    last = splits[-1] if splits else ""
    table.add_column("")
    times = {
        (each["model"], each["batch"]): each["median_ms"] for each in certificate["latency"] if each["threads"] == 1
    }
    batches = sorted({batch for _, batch in times})
    short = {"validation": "top-1 val"}
    for name in (*(short.get(split, f"top-1 {split}") for split in splits), "NLL", "ECE", "= float", "KiB"):
        table.add_column(name, **single)
    for batch in batches:
        table.add_column(f"ms for {batch}", **single)
    sizes = {"export": certificate["bytes"], "float": certificate["float_bytes"] or certificate["float"]["bytes"]}
    parts = {"export": certificate, "float": certificate["float"], "teacher": certificate["teacher"]}
    for model, part in parts.items():
        if part is None or not splits:
            continue
        m, size = part["splits"][last], sizes.get(model, part["bytes"])
        same = f"{m['agreement_float']:.2f}" if "agreement_float" in m else ""
        top1 = (f"{part['splits'][split]['top1']:.2f}" for split in splits)
        speeds = (f"{times[model, batch]:.3g}" for batch in batches)
        table.add_row(model, *top1, f"{m['nll']:.4f}", f"{m['ece']:.4f}", same, f"{size / 1024:.0f}", *speeds)
    table.caption = f"= float: % of images with the same class. NLL, ECE and = float on {last}. Time on one thread."
    return table


def predict_images(arguments: Sequence[str]) -> None:
    """Classify image files with a run, an exported file or a timm model; write CSV or lines of JSON."""
    parser = Parser(
        prog="disk-kd predict",
        description=f"{predict_images.__doc__} Images are prepared as in evaluation. Probabilities are calibrated by"
        " the run's temperature, if it has one.",
    )
    what = "Run directory, file of weights, .onnx or .pt2 file, timm folder, or timm name with --pretrained."
    parser.add_argument("model", metavar="MODEL", help=what)
    images = "Image files, folders and uncompressed tars; - reads a list of them from standard input, one a line."
    parser.add_argument("images", nargs="*", metavar="IMAGES", help=images)
    parser.add_argument("--from-list", type=path, metavar="FILE", help="File with a list of images, one a line.")
    parser.add_argument("--format", choices=PREDICTION_FORMATS, default="csv", help="Output format (default: csv).")
    parser.add_argument("--output", type=path, help="File to write (default: standard output).")
    parser.add_argument("--top-k", type=count, default=5, metavar="K", help="Classes of each image (default: 5).")
    parser.add_argument("--batch-size", type=count, metavar="N", help="Images in a batch (default: as in evaluation).")
    skip = "Leave out images that cannot be read, and name each on standard error."
    parser.add_argument("--skip-unreadable", action="store_true", help=skip)
    parser.add_argument("--pretrained", action="store_true", help="Let timm download pretrained weights of MODEL.")
    parser.add_argument("--quiet", action="store_true", help="No progress and no notes on standard error.")
    add_import(parser)
    options = parser.parse_args(arguments)
    paths = _image_paths(options.images, options.from_list)
    if options.output is not None:
        listed = [] if options.from_list is None else [options.from_list, *paths]
        check_output(options.output, [options.model, *listed, *options.images])
    classifier = open_classifier(options.model, pretrained=options.pretrained, imports=options.imports)
    top_k = min(options.top_k, len(classifier.classes))
    show = TableConsole(stderr=True, quiet=options.quiet)
    skipped = (lambda message: print(f"left out: {message}", file=sys.stderr)) if options.skip_unreadable else None
    show.print(calibration_text(classifier), highlight=False, markup=False, soft_wrap=True)
    predictions = predict_files(
        classifier, image_files(paths), top_k=top_k, batch_size=options.batch_size, skipped=skipped
    )
    text = prediction_lines(counted(predictions, show), options.format, top_k)
    if options.output is None:
        sys.stdout.writelines(text)
        return
    with replacing(options.output) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(text)


def _image_paths(images: Sequence[str], listed: Path | None) -> Iterable[str]:
    """The paths of the command line, of a list, or of standard input."""
    if listed is not None:
        if images:
            raise ConfigError("--from-list names the images; leave the others out")
        try:
            return list(listed_files(io.StringIO(listed.read_text(encoding="utf-8", errors="surrogateescape"))))
        except OSError as error:
            raise DataError(f"the list {listed} cannot be read: {error.strerror}") from None
    if list(images) == ["-"]:
        return listed_files(sys.stdin)
    if not images:
        raise ConfigError("no images: give files, folders or tars, - for a list on standard input, or --from-list FILE")
    if "-" in images:
        raise ConfigError("- reads a list of images from standard input; give it alone")
    check_paths(images)
    return images
