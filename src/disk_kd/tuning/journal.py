"""The state of a search on disk. A search is a function of its settings and of the results in its journal.

A killed search is repeated from the start with the results that it has, so it ends as one that was never killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk_kd.errors import RunError, shown
from disk_kd.files import write_text
from disk_kd.options import plain

STUDY, JOURNAL = "study.json", "journal.jsonl"


@dataclass(frozen=True)
class Result:
    """What came of a run of the search.

    Attributes:
        top1: on the validation split, in percent; None: the run failed.
        seconds: of training and validation.
        failed: why the run failed; "" if it did not.
        train_s: of training alone.
    """

    top1: float | None
    seconds: float
    failed: str = ""
    train_s: float = 0.0


class Journal:
    """Results and decisions of a search, appended one line at a time.

    Args:
        folder: of the search; it is created.
        about: what the results depend on. It must be that of the search which is in the folder already.

    Raises:
        RunError: another search is in the folder, the folder holds something else, or its files are damaged.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        check_same_search(folder, about)
        self._results: dict[str, Result] = {}
        self._decisions: dict[str, Any] = {}
        self._used_s = 0.0
        for line in _lines(folder / JOURNAL):
            self._take(line)
        self._begun = time.monotonic() - self._used_s
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / STUDY).exists():
            write_text(folder / STUDY, json.dumps(plain(about), indent=2) + "\n")

    @property
    def used_s(self) -> float:
        """Seconds that the search took so far, in all its processes; what was killed before it ended is left out."""
        return time.monotonic() - self._begun

    @property
    def results(self) -> Mapping[str, Result]:
        """All results, by key."""
        return self._results

    def result(self, key: str) -> Result | None:
        """The result of a run; None if it has not ended."""
        return self._results.get(key)

    def add(self, key: str, result: Result, **about: Any) -> None:
        """Append the result of a run."""
        self._append({"kind": "run", "key": key, **vars(result), **about})

    def decision(self, name: str) -> Any:
        """A decision that was made before; None if it was not."""
        return self._decisions.get(name)

    def decide(self, name: str, value: Any) -> Any:
        """Append a decision that depends on the time. It holds when the search is repeated. Returns the value."""
        self._append({"kind": "decision", "name": name, "value": value})
        return value

    def _append(self, line: Mapping[str, Any]) -> None:
        line = {**plain(line), "used_s": round(self.used_s, 2)}
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        self._used_s = float(line["used_s"])
        if line["kind"] == "run":
            self._results[line["key"]] = Result(line["top1"], line["seconds"], line["failed"], line["train_s"])
        else:
            self._decisions[line["name"]] = line["value"]


def check_same_search(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another search, or something else.

    Args:
        folder: of the search; it may be missing.
        about: as of `Journal`.

    Raises:
        RunError: it does.
    """
    about = plain(about)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"the folder of the search {folder} is a file; give another --output")
    if not (folder / STUDY).exists():
        if (folder / JOURNAL).exists() or (folder.exists() and any(folder.glob("*.yaml"))):
            raise RunError(f"{folder} is not the folder of a search (it has no {STUDY}); give another --output")
        return
    try:
        before = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise RunError(f"{folder / STUDY} cannot be read; give another --output")
    if differing := [name for name in about if before.get(name) != about[name]]:
        raise RunError(
            f"{folder} holds a search with another {', '.join(map(shown, differing))}; go on with the same command,"
            " or give another --output"
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal. A last line that a kill cut off is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("rb+") as file:
            file.truncate(len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if all({"kind", "used_s"} <= line.keys() for line in lines):
            return lines
    except (AttributeError, ValueError):
        pass
    raise RunError(f"{path} is damaged; give another --output")
