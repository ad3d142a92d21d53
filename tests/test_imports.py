"""Who may import whom: the rooms of the design, held by the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import disk_kd

SOURCE = Path(disk_kd.__file__).parent
LEAVES = {"errors", "files", "logits", "memory", "options", "plugins", "ranks", "support", "svg", "tables"}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "logits": set(),
    "memory": set(),
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
    "evaluate": set(),
    "teacher": set(),
    "hints": {"losses", "models", "teacher"},
    "tasks": {"losses", "helpers", "teacher", "hints"},
    "train": {"data", "teacher", "tasks"},  # of tasks the protocol alone: StudentTask and Phase
    "config": {"hints", "tasks", "models", "data", "teacher", "train"},
    "build": {"config", "hints", "tasks", "models", "data", "teacher", "train"},
    "summary": {"build", "config", "tasks", "models", "data", "train"},
    "run": {"build", "summary", "config", "tasks", "models", "data", "teacher", "train", "evaluate"},
    "compare": {"build", "config", "data", "run", "summary", "train"},
    "export": {"build", "config", "models", "summary"},
    "report": {
        *("build", "compare", "config", "data", "evaluate", "helpers", "losses"),
        *("models", "run", "summary", "tasks", "teacher"),
    },
    "toy": {"losses", "helpers"},
    "bench": {"build", "summary", "config", "tasks", "models", "helpers", "data", "teacher", "train"},
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
    assert rooms - {"__init__", "__main__", "cli"} == set(ALLOWED)


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
