"""The training loop, for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd import ranks
from disk_kd.data import Loader
from disk_kd.errors import RunError
from disk_kd.files import save_tensors
from disk_kd.old_names import new_keys
from disk_kd.support import sample_name
from disk_kd.tasks import Phase, StudentTask
from disk_kd.training.checkpoint import (
    counted,
    is_finite,
    load_checkpoint,
    random_state,
    save_checkpoint,
    seed_draws,
    set_random_state,
    whole,
)
from disk_kd.training.display import Display
from disk_kd.training.log import Meter, MetricsLog
from disk_kd.training.optim import load_optimizer, make_optimizer, make_schedule
from disk_kd.training.quantise import ranges_of, set_quantised
from disk_kd.training.selection import score_and_margin
from disk_kd.training.state import load_task_state, task_state
from disk_kd.training.step import TrainStep
from disk_kd.training.stop import StoppedError, StopRequest
from disk_kd.training.tracking import Tracker

CHECKPOINT = Path("last") / "checkpoint.safetensors"
BEST = Path("best") / "student.safetensors"


_SHOWN_FIRST = (1, 10)
"""Number of steps of this process before the first display of the loss."""


class DivergenceError(RunError):
    """The loss or the weights are not finite."""


@dataclass
class Position:
    """The position of a run: everything that is counted, and saved in the checkpoint."""

    epochs: int = 0
    """Epochs of any phase that are finished."""
    step: int = 0
    """Steps done in the epoch at hand."""
    steps: int = 0
    """Steps done in all."""
    student_epochs: int = 0
    best_score: float = -1.0
    """The highest accuracy on validation so far, of any checkpoint; `train.select_by` says which accuracy.
    With `train.quantise`, of the quantised epochs once they begin."""
    best_margin: float = 0.0
    """Its standard error."""
    best_epoch: int = 0
    """Student epochs of the checkpoint in `best/`, which may be a later one than the highest."""
    images: int = 0
    """Images of all steps."""
    unlabelled_images: int = 0
    """Those among them without a label."""
    train_s: float = 0.0


def fit(
    step: TrainStep,
    loader: Loader,
    folder: Path,
    *,
    plan: list[Phase],
    validate: Callable[[], Mapping[str, float]] | None,
    display: Display,
    resume: bool = False,
    tracker: Tracker | None = None,
) -> Position:
    """Train the task of `step` through the epochs of `plan`, and save everything in `folder`.

    Args:
        step: training step, with its task and settings. The loop knows no method.
        loader: batches of the training split.
        folder: run directory; the checkpoints are in `last/` and `best/`.
        plan: phase of each epoch, from `disk_kd.tasks.plan_epochs`.
        validate: evaluates the student on the validation split. Its accuracy chooses the checkpoint
            (`score_and_margin`). None: there is no validation split, and the last checkpoint is used.
        display: progress display.
        resume: resume from the checkpoint in `last/`, if there is one.
        tracker: gets the metrics too.

    With several ranks, each trains on its part of every batch. The main rank writes.

    Returns:
        The position at the end.

    Raises:
        DivergenceError: the loss, or the state to save, is not finite. The last checkpoint is kept.
        StoppedError: a signal asked the run to stop. The run is saved.
        CheckpointError: the checkpoint cannot be read, or belongs to another task.
    """
    task, settings = step.task, step.settings
    phases = {phase.name: phase for phase in plan}
    modules = {name: unwrap_model(getattr(task, phase.module)) for name, phase in phases.items()}
    optimizers = {name: make_optimizer(module, settings) for name, module in modules.items()}
    schedules = {
        name: make_schedule(optimizer, settings, phases[name], plan.count(phases[name]), loader.steps_per_epoch)
        for name, optimizer in optimizers.items()
    }
    student_epochs = sum(phase.trains_student for phase in plan)
    # A phase's warm-up epochs come before its schedule begins.
    updates = {name: -phase.warmup_epochs * loader.steps_per_epoch for name, phase in phases.items()}
    at, meter, log_bytes, clock = Position(), Meter(), 0, time.monotonic()

    def count_time() -> None:
        nonlocal clock
        now = time.monotonic()
        at.train_s, clock = at.train_s + now - clock, now

    # Values that are infinite from the start, such as a mask of the model, are no sign of divergence.
    endless = {name for name, value in task_state(task).items() if not is_finite(value)}

    def learned() -> list[Tensor]:
        return [value for name, value in task_state(task).items() if name not in endless]

    def check_finite(*more: Any) -> None:
        if not is_finite([learned(), *more]):
            raise DivergenceError(_diverged("the loss or the weights are", at.steps))

    def state() -> dict[str, Any]:
        count_time()
        return {
            "task": task_state(task),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
            "scaler": step.scaler.state_dict(),
            "updates": updates,
            "position": asdict(at),
            "meter": meter.state_dict(),
            "random": random_state(),
            "log_bytes": log.sync(),
        }

    def save() -> None:
        if ranks.is_main():
            now = state()
            check_finite(now["optimizers"], now["meter"])
            save_checkpoint(folder / CHECKPOINT, now)

    if resume and ranks.from_main((folder / CHECKPOINT).exists):
        saved = load_checkpoint(folder / CHECKPOINT)
        with whole(folder / CHECKPOINT):
            load_task_state(task, saved["task"])
            for name, optimizer in optimizers.items():
                load_optimizer(optimizer, saved["optimizers"][name])
            step.scaler.load_state_dict(saved["scaler"])
            updates.update({name: counted(saved["updates"][name], least=updates[name]) for name in updates})
            at = Position(**new_keys(saved["position"]))
            counted(at.epochs, most=len(plan))
            counted(at.step, most=loader.steps_per_epoch)
            counted(at.student_epochs, most=student_epochs)
            done = at.epochs * loader.steps_per_epoch + at.step
            counted(at.steps, least=done, most=done)
            meter.load_state_dict(saved["meter"], task.device)
            set_random_state(saved["random"])
            log_bytes = counted(saved["log_bytes"])
            if not is_finite([saved["optimizers"], saved["meter"], learned()]):
                raise ValueError("numbers in it are not finite")

    set_quantised(task, settings, at.student_epochs)
    begun_at = at.steps
    log = MetricsLog(folder, keep_bytes=log_bytes, show=display.record, tracker=tracker)
    saved_at = clock = time.monotonic()
    task.train()
    with display, StopRequest(settings.log_every if task.device.type == "cuda" else 1) as stop:
        for phase in plan[at.epochs :]:
            task.set_phase(phase.name)
            if set_quantised(task, settings, at.student_epochs):
                at.best_score = -1.0
            optimizer, set_rate, module = optimizers[phase.name], schedules[phase.name], modules[phase.name]
            # Counted by phase, so that student epochs use every view, whatever the rounds and the number of views.
            view = plan[: at.epochs].count(phase)
            for batch in loader.batches(at.epochs, start=at.step, view=view):
                if stop.now(at.steps):
                    save()
                    raise StoppedError(f"asked to stop after {at.steps} steps; saved, go on with --resume")
                if ranks.size() > 1:
                    seed_draws(settings.seed, at.steps)
                set_rate(updates[phase.name])
                meter.add(step(batch, optimizer, module))
                updates[phase.name] += 1
                if phase.trains_student:
                    task.update_ema(step=updates[phase.name])
                at.step += 1
                at.steps += 1
                at.images += loader.batch_size
                at.unlabelled_images += batch.unlabelled
                display.step(at.steps)
                if at.steps % settings.log_every == 0 or at.step == loader.steps_per_epoch:
                    means = meter.means()
                    count_time()
                    lr = optimizer.param_groups[0]["lr"]
                    log.metrics("train", at.steps, phase=phase.name, epoch=at.epochs, lr=lr, **means)
                    log.timing(at.steps, train_s=at.train_s, images_per_s=at.images / at.train_s)
                    if not math.isfinite(means["loss"]):
                        of_teacher = _unusable(task, loader, at, view, settings.log_every)
                        raise DivergenceError(_diverged("the loss is", at.steps, of_teacher))
                elif at.steps - begun_at in _SHOWN_FIRST and display.for_people:
                    display.first({"phase": phase.name, "epoch": at.epochs, **meter.so_far()})
                # A loss that is not finite raises an error at the next line of the log; the earlier checkpoint is kept.
                if time.monotonic() - saved_at >= settings.checkpoint_every_s and meter.finite():
                    save()
                    saved_at = time.monotonic()

            at.epochs, at.step = at.epochs + 1, 0
            at.student_epochs += phase.trains_student
            # Epochs that do not train the student need no evaluation.
            last = at.student_epochs == student_epochs
            due = phase.trains_student and (last or at.student_epochs % settings.evaluate_every == 0)
            if validate is not None and due:
                metrics = validate()
                clock = time.monotonic()  # evaluation is not training
                log.metrics("validation", at.steps, student_epochs=at.student_epochs, **metrics)
                score, margin = score_and_margin(metrics, settings.select_by)
                if score > at.best_score:
                    at.best_score, at.best_margin = score, margin
                # Compared with the highest accuracy, not with the kept checkpoint's, so that small decreases cannot add
                # up.
                if score >= at.best_score - at.best_margin:
                    at.best_epoch = at.student_epochs
                    if ranks.is_main():
                        check_finite()
                        save_tensors(folder / BEST, evaluated(task).state_dict(), ranges_of(task))
                    # Only a CPU would reach the same weights again if it were killed before the next checkpoint.
                    if task.device.type != "cpu":
                        save()
        save()
    log.close()
    return at


def evaluated(task: StudentTask) -> nn.Module:
    """The plain model that is validated and saved: the student, or its moving average."""
    return unwrap_model(task.get_eval_model(ema=task.has_ema()))


def _unusable(task: StudentTask, loader: Loader, at: Position, view: int, log_every: int) -> str:
    """The teacher's outputs that are not finite in the steps since the last line of the log, and for which image.

    Empty if all are finite.
    """
    first = max(0, at.step - log_every)
    for _, batch in zip(range(first, at.step), loader.batches(at.epochs, start=first, view=view), strict=False):
        if names := task.unusable_outputs(batch.images):
            rows = (n for n in range(len(batch.images)) if task.unusable_outputs(batch.images[n : n + 1]))
            row = next(rows, None)
            of = "" if row is None else f" for {sample_name(loader.split, int(batch.ids[row]))}"
            return f"{', '.join(names)} are not finite{of}"
    return ""


def _diverged(what: str, steps: int, of_teacher: str = "") -> str:
    if of_teacher:
        return f"the teacher's {of_teacher}, so the loss is not; check its weights, or give --teacher.precision fp32"
    return f"{what} no longer finite after {steps} steps; lower train.lr or set train.clip_grad"
