"""The decision whether to compile: a trial on a real batch, kept if it pays and undone otherwise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

import torch
from torch import nn

from disk_kd import ranks
from disk_kd.data import Batch, Loader
from disk_kd.errors import DiskKDError
from disk_kd.tasks import Phase
from disk_kd.training.checkpoint import random_state, set_random_state
from disk_kd.training.state import load_task_state, task_state
from disk_kd.training.step import TrainStep

WORTH_TRYING_S = 300.0
"""Runs with a shorter expected time are not compiled: they would not save the time of compilation."""
COMPILING_S_PER_MODULE = 0.5
"""Seconds of compilation per trained leaf module: resnet10_s, which has 29, takes 12 to 36 s on two cores."""
_LIKELY_SAVING = 0.1
"""Fraction of a run's time that compilation usually saves."""
TOLD_EVERY_S = 30.0
"""Seconds between two progress messages of a compilation."""
_FASTER = 0.97
_TIMED_STEPS = 5


def compile_where_it_pays(
    step: TrainStep, loader: Loader, phases: Sequence[Phase], steps: int, say: Callable[[str], None]
) -> bool:
    """Decide on `settings.compile`, and leave the step compiled or eager accordingly.

    True: compile, unless it fails. "auto": try if the run is long enough to save the time of compilation, which is
    estimated from the number of modules, and keep it if the compiled step is measured to be at least 3 % faster. The
    trial compiles one phase; the others follow if it pays. Parameters, buffers and random states are restored.

    Args:
        step: the training step.
        loader: its first batch is used for the trial.
        phases: the different phases of the run. The first that trains the student is timed.
        steps: number of steps of the run.
        say: gets messages at the start, during and at the end of compilation, and a warning if it failed or did not
            pay.

    Returns:
        Whether the step is compiled.
    """
    wanted = step.settings.compile
    if wanted is False or step.settings.quantise is not None:
        return False
    task, batch = step.task, next(loader.batches(0))
    tried = next((phase for phase in phases if phase.trains_student), phases[0])
    saved, random = {name: value.clone() for name, value in task_state(task).items()}, random_state()
    task.train()
    try:
        step.run_eagerly()
        eager_s = 0.0 if wanted is True else _step_s(step, batch, tried)
        if wanted == "auto" and ranks.from_main(lambda: eager_s) * steps < worth_trying_s(task.trainable_module):
            return False
        say("Compiling student and loss, which takes minutes for large models (--train.compile false does without)")
        step.compile()
        compile_s = _compile(step, batch, [tried], say)
        compiled_s = 0.0 if wanted is True else _step_s(step, batch, tried)
        times = f"a step then takes {1e3 * compiled_s:.1f} ms instead of {1e3 * eager_s:.1f} ms"
        if wanted == "auto" and ranks.from_main(lambda: compiled_s > _FASTER * eager_s):
            step.run_eagerly()
            say(
                f"warning: compiled in {compile_s:.0f} s, but {times}; going on without (--train.compile false does"
                " not try)"
            )
            return False
        compile_s += _compile(step, batch, [phase for phase in phases if phase is not tried], say)
        say(f"Compiled in {compile_s:.0f} s" + (f"; {times}" if wanted == "auto" else ""))
    except DiskKDError:
        raise
    except Exception as error:  # after any error of the compiler, training goes on without it
        step.run_eagerly()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        say(f"warning: torch.compile failed ({type(error).__name__}: {reason[0]}); going on without")
    finally:
        for parameter in task.parameters():
            parameter.grad = None
        load_task_state(task, saved)
        set_random_state(random)
        task.set_phase(None)
    return step.compiled


def worth_trying_s(module: nn.Module) -> float:
    """The minimum expected time of a run for which a trial of compilation pays."""
    leaves = sum(not any(part.children()) for part in module.modules())
    return max(WORTH_TRYING_S, COMPILING_S_PER_MODULE * leaves / _LIKELY_SAVING)


def _compile(step: TrainStep, batch: Batch, phases: Sequence[Phase], say: Callable[[str], None]) -> float:
    """Compile the phases by a first step of each. Returns the seconds that it took."""
    start = time.perf_counter()
    with _progress_reported(say):
        for phase in phases:
            step.task.set_phase(phase.name)
            step.gradients(batch)
    return time.perf_counter() - start


@contextmanager
def _progress_reported(say: Callable[[str], None]) -> Iterator[None]:
    """Report at intervals how long the block has taken so far."""
    start, ended = time.perf_counter(), Event()

    def tell() -> None:
        while not ended.wait(TOLD_EVERY_S):
            say(f"Still compiling after {time.perf_counter() - start:.0f} s")

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _step_s(step: TrainStep, batch: Batch, phase: Phase) -> float:
    """Median time of forward and backward pass in seconds, after two warm-up steps."""
    step.task.set_phase(phase.name)
    times = []
    for _ in range(2 + _TIMED_STEPS):
        start = time.perf_counter()
        step.gradients(batch)
        if step.task.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
