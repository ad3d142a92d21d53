"""Whether to compile: tried on a real batch, kept where it pays, undone without a trace where it does not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from disk_kd import ranks
from disk_kd.data import Batch, Loader
from disk_kd.errors import DiskKDError
from disk_kd.tasks import Phase
from disk_kd.train.checkpoint import random_state, set_random_state
from disk_kd.train.state import load_task_state, task_state
from disk_kd.train.step import TrainStep

WORTH_TRYING_S = 300.0
"""A run that is expected to be shorter than this would not earn the time of compiling back."""
_FASTER = 0.97
_TIMED_STEPS = 5


def compile_where_it_pays(
    step: TrainStep, loader: Loader, phases: Sequence[Phase], steps: int, say: Callable[[str], None]
) -> bool:
    """Decide on `settings.compile`, and leave the step compiled or eager accordingly.

    True: compiled, unless compiling fails. "auto": compiled if the run is long enough and the compiled step is measured
    to be at least 3% faster. Parameters, buffers and random states are as before.

    Args:
        step: of the task.
        loader: whose first batch it is tried on.
        phases: the distinct phases of the run; all are compiled, the first that trains the student is timed.
        steps: how many steps the run has.
        say: is told that compiling begins, and warned where it failed or did not pay.

    Returns:
        Whether the step is compiled.
    """
    wanted = step.settings.compile
    if wanted is False:
        return False
    task, batch = step.task, next(loader.batches(0))
    saved, random = {name: value.clone() for name, value in task_state(task).items()}, random_state()
    task.train()
    try:
        step.run_eagerly()
        eager_s = 0.0 if wanted is True else _step_s(step, batch, phases)
        if wanted == "auto" and ranks.from_main(lambda: eager_s) * steps < WORTH_TRYING_S:
            return False
        say("Compiling student and loss, which takes minutes for large models (--train.compile false does without)")
        step.compile()
        start = time.perf_counter()
        for phase in phases:
            task.set_phase(phase.name)
            step.gradients(batch)
        compile_s = time.perf_counter() - start
        compiled_s = 0.0 if wanted is True else _step_s(step, batch, phases)
        if wanted == "auto" and ranks.from_main(lambda: compiled_s > _FASTER * eager_s):
            step.run_eagerly()
            say(
                f"warning: compiled in {compile_s:.0f} s, but a step then takes {1e3 * compiled_s:.1f} ms instead of"
                f" {1e3 * eager_s:.1f} ms; going on without (--train.compile false does not try)"
            )
    except DiskKDError:
        raise
    except Exception as error:  # whatever a compiler dies of, training can do without it
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


def _step_s(step: TrainStep, batch: Batch, phases: Sequence[Phase]) -> float:
    """Median time of forward and backward, in seconds, after two to warm up."""
    student = next((phase for phase in phases if phase.trains_student), phases[0])
    step.task.set_phase(student.name)
    times = []
    for _ in range(2 + _TIMED_STEPS):
        start = time.perf_counter()
        step.gradients(batch)
        if step.task.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
