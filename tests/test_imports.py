"""Who may import whom: the rooms of the design, held by the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import disk_kd

SOURCE = Path(disk_kd.__file__).parent
LEAVES = {
    *("errors", "fake_int8", "files", "logits", "memory", "old_names", "options", "plugins", "ranks", "support", "svg"),
    "tables",
}
ALLOWED = {
    "errors": set(),
    "fake_int8": set(),
    "files": set(),
    "logits": set(),
    "memory": set(),
    "old_names": set(),
    "options": set(),
    "plugins": set(),
    "ranks": set(),
    "support": set(),
    "svg": set(),
    "tables": set(),
    "losses": set(),
    "helpers": set(),
    "models": set(),
    "data": set(),
    "metrics": set(),
    "teacher": {"models"},
    "hints": {"losses", "models", "teacher"},
    "tasks": {"losses", "helpers", "teacher", "hints"},
    "training": {"data", "teacher", "tasks"},  # of tasks the protocol alone: StudentTask and Phase
    "recipe": {"training"},
    "config": {"recipe", "hints", "tasks", "models", "data", "teacher", "training"},
    "devices": {"data"},
    "backbones": {"data", "models", "teacher", "trained"},
    "written": {"build", "data", "models", "recipe", "trained"},
    "probe": {
        *("backbones", "build", "config", "devices", "recipe", "trained", "written"),
        *("data", "models", "teacher", "training"),
    },
    "zeroshot": {"build", "config", "written", "data", "models", "teacher"},
    "trained": {"config", "hints", "models", "data", "teacher"},
    "build": {
        *("backbones", "config", "devices", "recipe", "trained"),
        *("hints", "tasks", "models", "data", "teacher", "training"),
    },
    "storing": {"build", "config", "devices", "data", "tasks", "teacher", "training"},
    "measure": {"build", "config", "devices", "trained", "metrics", "models", "data", "teacher"},
    "run_folder": {"config", "recipe", "data", "tasks", "training"},
    "summary": {"build", "config", "tasks", "models", "data", "training"},
    "run": {
        *("build", "config", "devices", "measure", "run_folder", "storing", "summary", "trained"),
        *("data", "models", "tasks", "teacher", "training"),
    },
    "comparison": {
        *("build", "config", "devices", "recipe", "run", "run_folder", "summary"),
        *("data", "models", "tasks", "training"),
    },
    "export": {"build", "config", "recipe", "trained", "models", "summary", "data", "devices", "metrics"},
    "inference": {"build", "devices", "export", "recipe", "trained", "data", "models"},
    "report": {
        *("build", "comparison", "config", "devices", "measure", "metrics", "recipe", "run", "summary", "trained"),
        *("data", "export", "helpers", "losses", "models", "tasks", "teacher"),
    },
    "api": {
        *("advising", "build", "comparison", "config", "inference", "measure", "recipe", "run"),
        *("trained", "tuning", "data", "models"),
    },
    "arguments": {"config", "measure", "recipe", "data", "hints", "models", "tasks"},  # argv is read here alone
    "help": {"arguments", "config", "data", "hints", "models", "tasks", "teacher", "training"},
    "advising": {
        *("build", "config", "devices", "measure", "metrics", "storing"),
        *("data", "models", "tasks", "training"),
    },
    "tuning": {"advising", "comparison", "config", "recipe", "summary", "training"},
    "toy": {"losses", "helpers"},
    "bench": {
        *("arguments", "build", "config", "devices", "recipe", "storing", "summary", "trained"),
        *("data", "helpers", "models", "tasks", "teacher", "training"),
    },
}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [
        f"disk_kd.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "disk_kd" for a in n.names
    ]
    return {name.split(".")[1] for name in names if name.startswith("disk_kd.")}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_lies_below_it(room: str) -> None:
    files = [path for path in SOURCE.rglob("*.py") if room_of(path) == room]
    assert files
    for path in files:
        assert imported_rooms(path) <= ALLOWED[room] | LEAVES | {room}, path


def test_every_room_has_a_rule() -> None:
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert rooms - {"__init__", "__main__", "cli", "commands"} == set(ALLOWED)


def test_losses_need_torch_alone() -> None:
    for path in (SOURCE / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module is not None
                assert node.module.split(".")[0] in {
                    "__future__",
                    "typing",
                    "collections",
                    "torch",
                    "disk_kd",
                }, path
