"""One run, from a configuration to a run directory. All input is checked before the long work starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from timm.utils import unwrap_model
from torch import nn

from disk_kd import ranks
from disk_kd.build import (
    STUDENT,
    build_task,
    check_weights,
    first_batches,
    load_data,
    recorded_in_files,
    train_loader,
    with_classes,
)
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Dataset, Loader, workers_watched
from disk_kd.data.settings import DataSettings
from disk_kd.devices import pick_device, place
from disk_kd.errors import ConfigError
from disk_kd.files import save_tensors, write_text
from disk_kd.measure import evaluate_split, temperature_scaled
from disk_kd.models import load_state_dict, read_metadata
from disk_kd.run_folder import DATA, alone_in, check_folder, check_reused, check_same_images, lay_out, write_beginning
from disk_kd.storing import decide_store, decide_views, open_store
from disk_kd.summary import SUMMARY, last_metrics, model_sizes, read_summary, summarise, worst_classes
from disk_kd.tasks import Phase, StudentTask, plan_epochs
from disk_kd.teacher import AnyStore
from disk_kd.trained import student_metadata
from disk_kd.training import (
    BEST,
    CHECKPOINT,
    Display,
    JsonConsole,
    Position,
    TrainStep,
    check_logger,
    compile_where_it_pays,
    evaluated,
    fit,
    load_ranges,
    make_optimizer,
    prepare_quantisation,
    prepare_ranks,
    ranges_of,
    tracked,
)
from disk_kd.training.checkpoint import seed_all
from disk_kd.training.tracking import Tracker


def execute(
    config: RunConfig, console: Console | None = None, load: Callable[[DataSettings], Dataset] = load_data
) -> dict[str, Any]:
    """Train, select and evaluate as `config` describes.

    Args:
        config: configuration of the run.
        console: console for progress.
        load: function that returns the dataset.

    Returns:
        The content of `summary.json`.

    Raises:
        DiskKDError: the input is not valid. It is checked before training starts.
        OSError: the disk is full or not writable. Files written before are complete.
    """
    with workers_watched(), ranks.joined(pick_device(config.train.device)) as device:
        console = (ranks.is_main() and console) or Console(quiet=True)
        config = ranks.from_main(lambda: check_folder(with_classes(recorded_in_files(config))))
        folder = config.output
        if done := ranks.from_main(lambda: read_summary(folder) if (folder / STUDENT).exists() else None):
            ranks.from_main(lambda: check_reused(folder, config.data, load, console))
            return done
        check_logger(config.train.logger)
        run = PreparedRun.prepare(config, device, console, load)
        with alone_in(folder):
            run, step = run.begin(console)
            with tracked(config.train.logger, folder, run.config.to_tree(), console.print) as tracker:
                end = run.train(step, console, tracker)
                last = run.measured()
                run.select()
                chosen = run.measured()
                scaled = run.scaled()
                summary = ranks.from_main(lambda: run.summarise(end, last, chosen, scaled))
                if tracker is not None:
                    tracker.summarise(summary)
                return summary


@dataclass(frozen=True)
class PreparedRun:
    """The parts of a checked run that is ready to start.

    Attributes:
        config: configuration of the run.
        device: device of the run.
        dataset: dataset of the run.
        task: the method, with its student and teacher.
        plan: the phase of each epoch.
        loader: training batches.
        splits: the splits for evaluation, "validation" and "test", as far as they exist.
        sizes: parameters and multiply-adds of the student.
    """

    config: RunConfig
    device: torch.device
    dataset: Dataset
    task: StudentTask
    plan: list[Phase]
    loader: Loader
    splits: dict[str, AnySplit]
    sizes: dict[str, int]

    @classmethod
    def prepare(
        cls, config: RunConfig, device: torch.device, console: Console, load: Callable[[DataSettings], Dataset]
    ) -> PreparedRun:
        """Load the data, build the models and check everything before the long work.

        Raises:
            DiskKDError: the input is not valid.
        """
        folder, settings = config.output, config.train
        check_weights(config)
        dataset = load(config.data)
        if ranks.from_main((folder / CHECKPOINT).exists):
            ranks.from_main(lambda: check_same_images(folder, dataset))
            if not ranks.from_main(
                (folder / DATA).exists
            ):  # started by version 0.1, where datasets had no normalisation
                dataset = replace(dataset, normalisation=None)
        seed_all(settings.seed)
        task = build_task(config, dataset, device, lambda text: console.print(text, markup=False, soft_wrap=True))
        plan = plan_epochs(task.phases, settings.epochs)
        train = place(dataset.train, device)
        views = max(map(plan.count, plan))
        config = ranks.from_main(lambda: decide_store(decide_views(config), task, train, views, console))
        loader = train_loader(config, task, train, rank=ranks.rank(), ranks=ranks.size())
        task.set_clock(loader.steps_per_epoch, settings.accumulate)
        sizes = model_sizes(task, dataset)
        prepare_quantisation(
            task, settings, evaluated(task), (dataset.in_chans, dataset.image_size, dataset.image_size)
        )
        _check_batch(task, loader.batch_size // settings.accumulate // ranks.size())
        for phase in set(plan):  # an invalid optimiser raises its error before the long work
            make_optimizer(unwrap_model(getattr(task, phase.module)), settings)
        ranks.from_main(lambda: lay_out(folder, task))
        held_out = {"validation": dataset.validation, "test": dataset.test}
        measured = {name: split for name, split in held_out.items() if split is not None and task.classifies}
        splits = {name: place(split, device) for name, split in measured.items()}
        return cls(config, device, dataset, task, plan, loader, splits, sizes)

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        return len(self.plan) * self.loader.steps_per_epoch

    def begin(self, console: Console) -> tuple[PreparedRun, TrainStep]:
        """Make or open the teacher store, compile if it pays, and write the configuration.

        Returns:
            The run with all decisions made, and its training step.
        """
        settings = self.config.train
        with ranks.raised_once():
            store = open_store(self.config, self.task, self.loader.split, console)
        self.task.begin(first_batches(self.config, self.task, self.loader.split, store))
        if ranks.size() > 1:
            prepare_ranks(self.task, settings)
        step = TrainStep(self.task, settings, store)
        compiled = compile_where_it_pays(step, self.loader, list(dict.fromkeys(self.plan)), self.steps, console.print)
        run = replace(self, config=self.config.decided({"train.compile": compiled}))
        ranks.from_main(lambda: write_beginning(run.config, self.dataset))
        return run, step

    def train(self, step: TrainStep, console: Console, tracker: Tracker | None = None) -> Position:
        """Train or resume until the end."""
        config = self.config
        unlabelled = self.dataset.train.unlabelled
        images = {"labelled_samples": len(self.dataset.train) - unlabelled, "unlabelled_samples": unlabelled}
        _show_start(console, config, epochs=len(self.plan), steps=self.steps, **images)
        if unlabelled:
            console.print(self._epoch_text(images["labelled_samples"], unlabelled), soft_wrap=True)
        settings = config.train
        if late := [milestone for milestone in settings.milestones if milestone >= settings.epochs]:
            console.print(
                f"The learning rate does not fall at train.milestones {late}: the run has {settings.epochs} epochs",
                soft_wrap=True,
            )
        validation = self.splits.get("validation")
        return fit(
            step,
            self.loader,
            config.output,
            plan=self.plan,
            validate=None if validation is None else lambda: self.measure(validation),
            display=Display(
                self.steps,
                title=str(config.output),
                console=console,
                epochs=len(self.plan),
                quantities=config.quantities,
            ),
            resume=config.resume,
            tracker=tracker,
        )

    def _epoch_text(self, labelled: int, unlabelled: int) -> str:
        """The numbers of labelled and unlabelled images in the first epoch; other epochs may differ by a batch."""
        without = self.loader.unlabelled_in(0)
        every = self.loader.steps_per_epoch * self.loader.batch_size
        return (
            f"An epoch has about {every - without:,} labelled and {without:,} unlabelled images, of {labelled:,} and"
            f" {unlabelled:,}"
        )

    def measure(self, split: AnySplit) -> dict[str, float]:
        """Metrics of the current student."""
        model = evaluated(self.task)
        ranks.share_buffers(model)  # the main rank's model is saved
        return evaluate_split(model, split, self.device, self.config.train.channels_last).as_dict()

    def measured(self) -> dict[str, dict[str, float]]:
        """Metrics of the current student on each split."""
        return {name: self.measure(split) for name, split in self.splits.items()}

    def select(self) -> None:
        """Load the checkpoint that validation chose (`disk_kd.training.selection`); without validation, the last."""
        best = self.config.output / BEST
        if ranks.from_main(best.exists):
            evaluated(self.task).load_state_dict(load_state_dict(best))
            load_ranges(self.task, read_metadata(best))

    def scaled(self) -> dict[str, dict[str, float]]:
        """The temperature that fits validation best, and NLL and ECE at it; empty if a split is missing."""
        if self.splits.keys() != {"validation", "test"}:
            return {}
        channels_last = self.config.train.channels_last
        return temperature_scaled(
            evaluated(self.task), self.splits["validation"], self.splits["test"], self.device, channels_last
        )

    def summarise(
        self,
        end: Position,
        last: dict[str, dict[str, float]],
        chosen: dict[str, dict[str, float]],
        scaled: dict[str, dict[str, float]],
    ) -> dict[str, Any]:
        """Save the student and write the run's summary.

        Args:
            end: position at the end of training.
            last: metrics of the last checkpoint by split.
            chosen: metrics of the chosen checkpoint, which is saved.
            scaled: metrics of the chosen checkpoint after temperature scaling.

        Returns:
            The content of summary.json.
        """
        config, dataset, student = self.config, self.dataset, evaluated(self.task)
        folder = config.output
        save_tensors(
            folder / STUDENT, student.state_dict(), student_metadata(config, dataset, student, ranges_of(self.task))
        )
        chosen = {name: metrics | scaled.get(name, {}) for name, metrics in chosen.items()}
        summary = summarise(config, self.task, dataset, end)
        summary |= self.sizes | {"end": last_metrics(folder, config), "last": last} | chosen
        summary["worst_classes"] = worst_classes(dataset, chosen)
        write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        return summary


def _show_start(console: Console, config: RunConfig, **lengths: int) -> None:
    """Report the start of training as an event, if the console takes events."""
    if isinstance(console, JsonConsole):
        console.event(
            "start",
            run=str(config.output),
            method=config.method,
            hint=config.hint,
            student=config.student.name,
            teacher=None if config.teacher is None else config.teacher.name,
            data=config.data.name,
            seed=config.train.seed,
            **lengths,
        )


def store_teacher(config: RunConfig, console: Console | None = None) -> AnyStore:
    """Make the teacher store for the run of `config`, without training. Ranks share the views.

    Raises:
        ConfigError: the method has no teacher.
        DiskKDError: as for `execute`.
    """
    if config.teacher is None:
        raise ConfigError(
            f"method {config.method} has no teacher whose outputs could be stored; give --method kd or disk"
        )
    config = with_classes(recorded_in_files(config)).decided({"teacher.store": True})
    console = console or Console(quiet=True)
    with workers_watched(), ranks.joined(pick_device(config.train.device)) as device, ranks.raised_once():
        check_weights(config)
        dataset = load_data(config.data)
        task = build_task(config, dataset, device)
        train = place(dataset.train, device)
        plan = plan_epochs(task.phases, config.train.epochs)
        config = decide_store(config, task, train, max(map(plan.count, plan)), console)
        store = open_store(config, task, train, console)
    assert store is not None
    return store


def _check_batch(task: StudentTask, images: int) -> None:
    """Check the minimum batch size: batch normalisation and losses on pairs need several images."""
    normalises = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.trainable_module.modules())
    for what, least in (("batch normalisation", 1 + normalises), ("the method", task.least_batch)):
        if images < least:
            raise ConfigError(
                f"{what} needs at least {least} images at a time, not {images}; "
                "raise train.batch_size, lower train.accumulate, or give more training samples"
            )
