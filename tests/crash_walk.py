"""The crash-point walk: what a command leaves behind when it is ended at each call that writes.

    python tests/crash_walk.py [COMMAND ...] [--by KILL|TERM|INT|ENOSPC|EIO] [--every N] [--first N] [--last N]

Each command runs undisturbed first, which counts the calls that write below its folder (crash_walk.c) and keeps what
the folder holds at each, in the middle of a write: what SIGKILL there leaves. Or, from the same beginning, it is ended
at each of them by a signal that asks it to stop, or by a disk that is full or broken from there on. After each end the
same command goes on as docs/ says. Then every file must be there as after the undisturbed run, up to times, and no
other file, in the temporary folder neither.

Processes are forks of this one, which imports once. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import errno
import gc
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

LIMIT_S = 240
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TINY = [
    *("--data.limit_train=60", "--student.name=cifar_resnet10_xxxs", "--train.epochs=2", "--train.batch_size=20"),
    *("--train.log_every=2", "--train.warmup_epochs=0", "--train.compile=false"),
]
TEACHER = ["--teacher.name=cifar_resnet10_xxxs", "--teacher.weights=teacher"]
STORE = ["--teacher.store=true", "--method=kd", "--views=2", "--runs=runs"]
RECIPE = "method: {name: ce}\ndata: {name: digits}\ndescription: "
PAIR = ["a.yaml", "b.yaml", *TINY, "--seeds=1", "--runs=runs"]


@dataclass(frozen=True)
class Scenario:
    """A command, what it starts from, and how it goes on.

    Args:
        command: its arguments.
        before: commands that make what it starts from.
        again: what the command gets in addition when it goes on.
    """

    command: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    again: Sequence[str] = ()


_TEACHER = ["train", *TINY, "--output=teacher", "--quiet"]
_MAP = ["--method=disk", "--method.helper=teacher-map", "--method.helper_warmup_epochs=1"]
SCENARIOS = {
    "train": Scenario(["train", *TINY, "--output=run", "--quiet"], again=["--resume"]),
    "distill": Scenario(["distill", *TINY, *TEACHER, *STORE, "--output=run", "--quiet"], [_TEACHER], ["--resume"]),
    "helper": Scenario(
        ["distill", *TINY, *TEACHER, *STORE, *_MAP, "--output=run", "--quiet"], [_TEACHER], ["--resume"]
    ),
    "store-teacher": Scenario(["store-teacher", *TINY, *TEACHER, *STORE, "--quiet"], [_TEACHER]),
    "evaluate": Scenario(["evaluate", "teacher", "--data.name=digits", "--json"], [_TEACHER]),
    "report": Scenario(["report", "teacher"], [_TEACHER]),
    "inspect": Scenario(
        ["inspect", "run", "--limit=20"],
        [_TEACHER, ["distill", *TINY, *TEACHER, "--method=disk", "--output=run", "--quiet"]],
    ),
    "convert": Scenario(
        ["convert", "teacher/best/student.safetensors", "--output=half.safetensors", "--half"], [_TEACHER]
    ),
    "compare": Scenario(["compare", *PAIR, "--quiet"]),
    "compare-again": Scenario(["compare", *PAIR, "--quiet"], [["compare", *PAIR, "--quiet"]]),
    "toy": Scenario(["toy", "intervals", "--starts=3", "--output=toy"]),
}
for _kind in ("safetensors", "timm", "torch.export", "onnx"):
    _export = ["export", "teacher", f"--format={_kind}"]
    SCENARIOS[f"export-{_kind}"] = Scenario(_export, [_TEACHER], ["--overwrite"])
    SCENARIOS[f"overwrite-{_kind}"] = Scenario([*_export, "--overwrite"], [_TEACHER, _export])
SCENARIOS["export-half"] = Scenario(["export", "teacher", "--half"], [_TEACHER], ["--overwrite"])

CODES = {"KILL": 0, "TERM": 75, "INT": 130, "ENOSPC": 2, "EIO": 2}


@dataclass
class Ended:
    """How a process ended."""

    code: int
    said: str
    calls: int


class Walk:
    """One scenario in a folder of its own, which is begun anew for each run of it."""

    def __init__(self, scenario: Scenario, place: Path) -> None:
        self.scenario, self.root, self._begun = scenario, place / "root", place / "begun"
        self.copies, self._met = place / "copies", dict[str, str | None]()
        self.walked = 0
        self._calls = place / "calls"
        for folder in ("tmp", "home"):
            (self.root / folder).mkdir(parents=True)
        for name in ("a", "b"):
            (self.root / f"{name}.yaml").write_text(RECIPE + name)
        for command in scenario.before:
            ended = self.run(command)
            assert ended.code == 0, ended.said
        shutil.copytree(self.root, self._begun)
        self.copies.mkdir()
        ended = self.run(scenario.command, keep=True)
        assert ended.code == 0, ended.said
        self.calls, self.expected = ended.calls, contents(self.root)

    def begin(self, state: Path) -> None:
        """Put the folder back to a state."""
        shutil.rmtree(self.root)
        shutil.copytree(state, self.root, copy_function=shutil.copy2)

    def run(self, arguments: Sequence[str], at: int = 0, by: str = "", keep: bool = False) -> Ended:
        """Run a command in the folder; at call `at` what `by` names happens; keep a copy at each call."""
        said = self._calls.with_name("said")
        child = os.fork()
        if not child:
            self._child(arguments, at, by, said, keep)
        _, status = os.waitpid(child, 0)
        _wait_for_session(child)
        calls = int(self._calls.read_text() or 0) if self._calls.exists() else 0
        self._calls.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), said.read_text(), calls)

    def _child(self, arguments: Sequence[str], at: int, by: str, said: Path, keep: bool) -> None:
        code = 1
        try:
            os.setsid()
            signal.alarm(LIMIT_S)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(self.root)
            os.environ |= {"TMPDIR": str(self.root / "tmp"), "HOME": str(self.root / "home")}
            tempfile.tempdir = str(self.root / "tmp")  # or Python tries the folder with a file of its own
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(out, 2)
            from disk_kd.cli import main

            arm, count = (getattr(ctypes.CDLL(None), name) for name in ("crash_arm", "crash_count"))
            number = getattr(signal, f"SIG{by}", 0)
            error = 0 if number else getattr(errno, by, 0)
            arm(bytes(self.root), ctypes.c_long(at), int(number), error, bytes(self.copies) if keep else b"")
            sys.argv = ["disk-kd", *arguments]
            code = main()
            gc.collect()  # files that could not be written may say so once more when they are closed
            self._calls.write_text(str(count()))
        finally:
            sys.stderr.flush()
            os._exit(code)

    def fault(self, at: int, by: str) -> str | None:
        """What is wrong after an end at call `at` and the run that goes on; None: nothing."""
        if by == "KILL":
            state = _fingerprint(self.copies / str(at))
            if state not in self._met:
                self.begin(self.copies / str(at))
                self._met[state] = self._fault_of_going_on()
            return self._met[state]
        self.begin(self._begun)
        ended = self.run(self.scenario.command, at, by)
        # A command may end before it looks for a signal, and needs no room for what it does last.
        if ended.code not in (CODES[by], 0) or (ended.code and len(ended.said.splitlines()) != 1):
            return f"ended with {ended.code}: {ended.said.strip()}"
        if left := sorted(name for name in contents(self.root) if name.endswith(".tmp")):
            return f"left {left}"
        return self._fault_of_going_on() if ended.code else self._fault()

    def _fault_of_going_on(self) -> str | None:
        self.walked += 1
        again = self.run([*self.scenario.command, *self.scenario.again])
        if again.code and "exists already" not in again.said:
            return f"could not go on ({again.code}): {again.said.strip()}"
        return self._fault()

    def _fault(self) -> str | None:
        found = contents(self.root)
        for what, names in (("left", found.keys() - self.expected), ("lost", self.expected.keys() - found)):
            if names:
                return f"{what} {sorted(names)}"
        changed = sorted(name for name in found if found[name] != self.expected[name])
        return f"changed {changed}" if changed else None


def _fingerprint(root: Path) -> str:
    """Of names and bytes below a folder, but for TensorBoard's; temporary files of any process are alike."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if "tensorboard" not in path.parts):
        name = re.sub(r"\.\d+\.tmp", ".tmp", str(path.relative_to(root)))
        digest.update(f"{name}\n".encode() + (path.read_bytes() if path.is_file() else b"/"))
    return digest.hexdigest()


def _wait_for_session(leader: int) -> None:
    """Wait for what a process started, such as the workers of a comparison."""
    deadline = time.monotonic() + LIMIT_S
    while any(_session(process.pid) == leader for process in psutil.process_iter()):
        assert time.monotonic() < deadline, "a process that the command started goes on"
        time.sleep(0.05)


def _session(process: int) -> int | None:
    try:
        return os.getsid(process)
    except OSError:
        return None


_TIMES = ("train_s", "images_per_s", "build_s", "by", "peak_memory_bytes", "start", "seconds")


def contents(root: Path) -> dict[str, Any]:
    """What lies below a folder, without times."""
    return {str(path.relative_to(root)): _content(path) for path in root.rglob("*") if "tensorboard" not in path.parts}


def _content(path: Path) -> Any:
    if not path.is_file() or path.name == "timing.jsonl":
        return None
    data = path.read_bytes()
    if path.suffix == ".json":
        return _timeless(json.loads(data))
    if path.name == "checkpoint.safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        times = rb'"train_s\\": [^,}]*|,?"sha256":"\w+",?'
        return re.sub(times, b"", data[8:end]).rstrip(), data[end:]
    if path.name == "compare.csv":
        return [_timeless(row) for row in csv.DictReader(io.StringIO(data.decode()))]
    if path.name.startswith("compare.") or path.suffix == ".pt2":
        return bool(data)  # rates in the tables; times in the archive
    return data


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k.removesuffix("_std") not in _TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def shim() -> Path | None:
    """The compiled library; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = Path(tempfile.gettempdir()) / f"crash_walk.{os.getuid()}.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    return library


def walk(name: str, by: str, points: slice) -> Iterator[str]:
    """The faults of a scenario, each a line; the last line is a summary."""
    with tempfile.TemporaryDirectory() as place:
        one = Walk(SCENARIOS[name], Path(place))
        walked, wrong = range(one.calls + 1)[points], 0
        for at in walked:
            if (fault := one.fault(at, by)) is not None:
                wrong += 1
                yield f"{name} {by} at call {at}: {fault}"
        yield f"{name} {by}: {len(walked)} of {one.calls} calls, {one.walked} ends, {wrong} faults"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(SCENARIOS))
    parser.add_argument("--by", choices=CODES, default="KILL")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--last", type=int)
    options = parser.parse_args()
    if "crash_walk" not in os.environ.get("LD_PRELOAD", ""):
        library = shim()
        if library is None:
            parser.error("needs Linux and a C compiler")
        settings = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    for module in ("disk_kd.cli", "disk_kd.report", "disk_kd.toy", "torch.utils.tensorboard", *ONNX_PACKAGES):
        with suppress(ImportError):
            importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    wrong = 0
    points = slice(options.first, options.last, options.every)
    for name in options.commands or SCENARIOS:
        for line in walk(name, options.by, points):
            wrong += " at call " in line
            print(line, flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
