"""Image files to predict: single ones, those of folders and tars, and those of a list."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from disk_kd.data.folders import FolderFiles, is_image, walk
from disk_kd.data.tars import TarFiles, tar_members
from disk_kd.errors import DataError, RunError, shown
from disk_kd.files import check_replaceable


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        name: its path as the user wrote it; of a file in a tar TAR:PATH.
        read: returns its bytes.
    """

    name: str
    read: Callable[[], bytes]


def image_files(paths: Iterable[str | Path]) -> Iterator[ImageFile]:
    """The images of files, folders and uncompressed tars, in order. Nothing is read before it is asked for.

    A folder gives the files below it whose names end like images, ordered by path. So does a tar.

    Raises:
        DataError: a path does not exist, or a folder or tar cannot be read or has no images.
    """
    for each in paths:
        path = Path(each)
        if path.is_dir():
            yield from _of_folder(path)
        elif path.suffix.lower() == ".tar" and path.is_file():
            yield from _of_tar(path)
        else:
            yield ImageFile(str(path), partial(FolderFiles(path.parent, (path.name,)), 0))


def listed_files(lines: TextIO) -> Iterator[str]:
    """The paths in a list, one a line. Blank lines are left out."""
    for line in lines:
        if path := line.rstrip("\r\n"):
            if "\0" in path:
                raise DataError("the list of images has a NUL character; give one path a line")
            yield path


def check_paths(paths: Iterable[str | Path]) -> None:
    """Check that paths exist, before any work.

    Raises:
        DataError: one does not, or is neither a file nor a folder.
    """
    for each in paths:
        try:
            mode = os.stat(each).st_mode
        except (OSError, ValueError):
            raise DataError(f"there is no image, folder or tar at {shown(str(each))}; give one that exists") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{each} is neither a file nor a folder; give image files, folders or tars")


def check_output(output: Path, inputs: Iterable[str | Path]) -> None:
    """Check that predictions can be written, and that their file replaces nothing that is read.

    Args:
        output: the file of predictions.
        inputs: images, folders and tars, the list and the model.

    Raises:
        RunError: its folder is missing, or it is one of the inputs, a link, a device or a folder.
    """
    check_replaceable(output)
    if not output.parent.is_dir():
        raise RunError(f"there is no folder {output.parent} for the predictions; make it, or give another --output")
    if output.exists() and any(os.path.exists(each) and output.samefile(each) for each in inputs):
        raise RunError(f"the output {output} is among the inputs, and would be replaced; give another --output")


def _of_folder(path: Path) -> Iterator[ImageFile]:
    found = sorted(os.path.join(folder, name) for folder, _, names in walk(path) for name in names if is_image(name))
    if not found:
        raise DataError(f"the folder {path} has no image; give a folder of image files")
    for name in found:
        yield ImageFile(name, partial(FolderFiles(Path("."), (name,)), 0))


def _of_tar(path: Path) -> Iterator[ImageFile]:
    members = {name: member for name, member in tar_members(path).items() if member.isfile() and is_image(name)}
    if not members:
        raise DataError(f"the tar {path} has no image; give a tar of image files")
    names = sorted(members)
    files = TarFiles((path, members[name].offset_data, members[name].size) for name in names)
    for number, name in enumerate(names):
        yield ImageFile(shown(f"{path}:{name}"), partial(files, number))
