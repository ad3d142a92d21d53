"""Files in uncompressed tars, read without unpacking."""

from __future__ import annotations

import mmap
import posixpath
import tarfile
from collections.abc import Iterable
from pathlib import Path

from disk_kd.errors import DataError

_MOST_LINKS = 40
_PIECE_BYTES = 2**20


class TarFiles:
    """Members of plain tars by their position in a list. Each process maps the tars into memory itself.

    Args:
        places: path of the tar, offset and size in bytes of each member.
    """

    def __init__(self, places: Iterable[tuple[Path, int, int]]) -> None:
        self.places = tuple(places)
        self._maps: dict[Path, mmap.mmap] = {}
        self._changed: dict[Path, int] = {}

    def __call__(self, number: int) -> bytes:
        path, start, size = self.places[number]
        content = self._maps.get(path)
        if content is None:
            with path.open("rb") as file:
                content = self._maps.setdefault(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return content[start : start + size]

    def stamp(self, number: int) -> str:
        """Size of the file, and modification time of its tar."""
        path, _, size = self.places[number]
        if path not in self._changed:
            self._changed[path] = path.stat().st_mtime_ns
        return f"{size} {self._changed[path]}"

    def __getstate__(self) -> dict[str, object]:
        return {"places": self.places, "_maps": {}, "_changed": {}}


def tar_members(path: Path) -> dict[str, tarfile.TarInfo]:
    """Files and folders of an uncompressed tar by name. A link has the file that it points to.

    Hidden ones are left out. If a name occurs several times, the last one counts, as in unpacking.

    Raises:
        DataError: the file is not such a tar, it is truncated, or a link points out of it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {posixpath.normpath(member.name).lstrip("/") or ".": member for member in tar.getmembers()}
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    _check_end(path, end)
    return {name: _followed(path, members, name) for name in members if not is_hidden(name)}


def is_hidden(name: str) -> bool:
    """Whether the name of a file, or of a folder around it, starts with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _check_end(path: Path, end: int) -> None:
    """Check the end of the tar, a block of zeros. Python silently stops at data that it cannot read."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path} ends or is damaged at byte {end}, before its end mark; copy or pack it again")
        for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
            if piece.strip(b"\0"):
                raise DataError(f"{path} goes on after its end mark at byte {end}; pack it again as one tar")


def _followed(path: Path, members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    at = name
    for _ in range(_MOST_LINKS):
        member = members.get(at)
        if member is None:
            break
        if member.issparse():
            raise DataError(f"{path}:{name} is stored without its zeros; pack it with tar, without --sparse")
        if not (member.islnk() or member.issym()):
            if member.isdir() and at != name:
                break
            return member
        folder = "" if member.islnk() else posixpath.dirname(at)
        at = posixpath.normpath(posixpath.join(folder, member.linkname))
    raise DataError(f"{path}:{name} is a link to no file in the tar; pack it with tar --dereference")
