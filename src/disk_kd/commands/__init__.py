"""The commands, one file for each group of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from disk_kd.commands.comparisons import advise_run, compare_recipes, demo, tune_recipe
from disk_kd.commands.experiments import bench_help, run_bench, toy
from disk_kd.commands.lists import list_names
from disk_kd.commands.results import inspect_examples, write_report
from disk_kd.commands.runs import distill, evaluate, store_outputs, train
from disk_kd.commands.shipping import convert_checkpoint, export_student, predict_images
from disk_kd.commands.teachers import probe_backbone, probe_help, write_zero_shot, zero_shot_help
from disk_kd.help import evaluation_help, run_help

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "train": train,
    "distill": distill,
    "store-teacher": store_outputs,
    "compare": compare_recipes,
    "advise": advise_run,
    "tune": tune_recipe,
    "probe": probe_backbone,
    "zeroshot": write_zero_shot,
    "evaluate": evaluate,
    "report": write_report,
    "inspect": inspect_examples,
    "bench": run_bench,
    "convert": convert_checkpoint,
    "export": export_student,
    "predict": predict_images,
    "toy": toy,
    "list": list_names,
}
EVERY_OPTION: dict[str, Callable[[Sequence[str]], str]] = {
    "train": partial(run_help, "train"),
    "distill": partial(run_help, "distill"),
    "store-teacher": partial(run_help, "store-teacher"),
    "advise": partial(run_help, "advise"),
    "evaluate": lambda _: evaluation_help(),
    "bench": bench_help,
    "probe": probe_help,
    "zeroshot": zero_shot_help,
}
"""The text of --help-all. `disk_kd_command` answers --help with the common options."""
