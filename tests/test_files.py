"""Files: what is no regular file is not replaced, what a killed process left goes, YAML of any kind is one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from disk_kd.errors import ConfigError, RunError
from disk_kd.files import read_yaml, remove_leftovers, user_path, write_text


def test_what_is_no_regular_file_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "link").symlink_to("page.html")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, kind in (("link", "a link"), ("folder", "a folder"), ("pipe", "a device or a pipe")):
        with pytest.raises(RunError, match=f"{name} is {kind}, which is not replaced by a file; give another name"):
            write_text(tmp_path / name, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "page.html").read_text() == "old"


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def test_temporary_files_of_ended_processes_go(dead: int, tmp_path: Path) -> None:
    for number in (dead, os.getpid(), os.getppid()):
        (tmp_path / f"checkpoint.safetensors.{number}.tmp").touch()
    (tmp_path / "notes.tmp").touch()
    (tmp_path / f"photos.{dead}.tmp").mkdir()
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"checkpoint.safetensors.{os.getppid()}.tmp", "notes.tmp", f"photos.{dead}.tmp"}


def test_a_file_older_than_the_process_of_its_number_goes(tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint.safetensors.{os.getppid()}.tmp"
    path.touch()
    os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_what_writes_a_file_removes_what_was_left_of_it(dead: int, tmp_path: Path) -> None:
    (tmp_path / f"page.html.{dead}.tmp").touch()
    (tmp_path / f"other.html.{dead}.tmp").touch()
    write_text(tmp_path / "page.html", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", f"other.html.{dead}.tmp"}


def test_a_path_of_a_user_begins_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/run") == tmp_path / "run"
    with pytest.raises(ConfigError, match="holds a NUL character"):
        user_path("a\0b")
    with pytest.raises(ConfigError, match="home directory in ~nobody-of-that-name/run is unknown; write the full path"):
        user_path("~nobody-of-that-name/run")


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "holds over 100,000 values, aliases written out; make it smaller"),
        ("description: 2020-13-45", r"a value is not what it looks like \(month must be"),
        ("train: {epochs: !!int abc}", "a value is not what it looks like"),
        ("data: {download: !!bool abc}", "a value is not what it looks like"),
        (f"train: {{epochs: {'9' * 5000}}}", "a value is not what it looks like"),
        (f"description: {'[' * 3000}{']' * 3000}", "it is nested too deeply; write it flatter"),
    ],
)
def test_yaml_that_cannot_be_read_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"mine.yaml:? {message}"):
        read_yaml(tmp_path / "mine.yaml")
