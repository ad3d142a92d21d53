"""Class folders, tars of class folders, and Tiny-ImageNet's own layout.

A class is a folder; labels follow the alphabetical order of the classes, samples that of their paths, so
a folder and a tar of it are the same dataset.
"""

from __future__ import annotations

import mmap
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from disk_kd.data.samples import Parts, Samples
from disk_kd.data.stream import Files
from disk_kd.errors import DataError


def folder_parts(root: Path) -> Parts:
    """`train`, `validation` (or `val`) and `test` of a root: folders of class folders, or tars of them.

    Raises:
        DataError: when there is no training split, or a split is given twice.
    """
    train = _find_split(root, "train")
    if train is None:
        held = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise DataError(f"{root} is expected to hold a folder train, train.tar or *-train.tar; it holds {held}")
    held_out = [_find_split(root, "validation", "val"), _find_split(root, "test")]
    validation, test = (None if path is None else class_samples(path) for path in held_out)
    return Parts(class_samples(train), validation, test)


def _find_split(root: Path, *names: str) -> Path | None:
    patterns = [pattern for name in names for pattern in (name, f"{name}.tar", f"*-{name}.tar")]
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{root} is expected to hold one {names[0]} split, it holds {listed}; move the others")
    return found[0] if found else None


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder by their place in a list of names."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self, number: int) -> bytes:
        return (self.folder / self.names[number]).read_bytes()

    def stamp(self, number: int) -> int:
        """Bytes of the file."""
        return (self.folder / self.names[number]).stat().st_size


class TarFiles:
    """Members of plain tars by their place in a list; each process maps the tars for itself.

    Args:
        places: path of the tar, offset and size in bytes of each member.
    """

    def __init__(self, places: Iterable[tuple[Path, int, int]]) -> None:
        self.places = tuple(places)
        self._maps: dict[Path, mmap.mmap] = {}

    def __call__(self, number: int) -> bytes:
        path, start, size = self.places[number]
        content = self._maps.get(path)
        if content is None:
            with path.open("rb") as file:
                content = self._maps.setdefault(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return content[start : start + size]

    def stamp(self, number: int) -> int:
        """Bytes of the file."""
        return self.places[number][2]

    def __getstate__(self) -> dict[str, object]:
        return {"places": self.places, "_maps": {}}


def class_samples(path: Path) -> Samples:
    """The images of a folder, or plain tar, of class folders.

    Raises:
        DataError: for an unreadable tar, no class folders, or a class without images.
    """
    return _tar_samples(path) if path.is_file() else _folder_samples(path)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _folder_samples(path: Path) -> Samples:
    classes = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    files = [
        (Path(folder) / name).relative_to(path).as_posix()
        for class_name in classes
        for folder, names in _walk(path / class_name)
        for name in names
        if _is_image(name)
    ]
    where = f"{path}/"
    names, of_class = _sorted(where, classes, files)
    return _listed(where, tuple(sorted(classes)), names, of_class, FolderFiles(path, tuple(names)))


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders in the folder and their files; links are followed, unless they would lead round in circles."""
    for folder, inner, names in os.walk(top, followlinks=True):
        for link in (os.path.join(folder, name) for name in inner):
            if os.path.islink(link) and Path(folder).resolve().is_relative_to(Path(link).resolve()):
                raise DataError(f"{link} leads back to a folder around it, {os.path.realpath(link)}; remove the link")
        yield folder, names


def _tar_samples(path: Path) -> Samples:
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name.removeprefix("./"): member for member in tar.getmembers()}
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    images = [n for n, member in members.items() if member.isfile() and _is_image(PurePosixPath(n).name)]
    tops = {name.split("/")[0] for name in images}
    # a tar of the folder `train` has that one folder around all its classes
    around = f"{tops.pop()}/" if len(tops) == 1 and all(name.count("/") > 1 for name in images) else ""
    files = {name.removeprefix(around): members[name] for name in images}
    folders = [n.removeprefix(around) for n, member in members.items() if member.isdir() and n.startswith(around)]
    classes = {name.split("/")[0] for name in [*folders, *files] if name not in ("", ".")}
    where = f"{path}:"
    names, of_class = _sorted(where, classes, files)
    contents = TarFiles((path, files[name].offset_data, files[name].size) for name in names)
    return _listed(where, tuple(sorted(classes)), names, of_class, contents)


def _sorted(where: str, classes: set[str], files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of files named class/…/file in order, and their classes; `where` goes before a name in messages."""
    names = sorted((name for name in files if "/" in name), key=lambda name: (name.split("/")[0], name))
    if not names:
        raise DataError(f"{where[:-1]} is expected to hold class folders with images, it holds none")
    of_class = [name.split("/")[0] for name in names]
    if empty := sorted(classes - set(of_class)):
        raise DataError(f"{where[:-1]}: class folder {empty[0]} holds no images; fill or remove it")
    return names, of_class


def _listed(where: str, classes: tuple[str, ...], names: Iterable[str], of_class: list[str], files: Files) -> Samples:
    number = {name: label for label, name in enumerate(classes)}
    paths = tuple(f"{where}{name}" for name in names)
    return Samples(classes, torch.tensor([number[name] for name in of_class]), files, paths)


def tiny_imagenet_parts(root: Path) -> Parts:
    """Tiny-ImageNet-200 as its archive unpacks, or with its `val` sorted into class folders.

    Its labelled `val` is the test split: the archive's test images have no labels. The words of the archive's
    `words.txt` are what people call the classes, where that file is there.

    Raises:
        DataError: when the layout is another, or an annotation names an unknown class.
    """
    inner = root / "tiny-imagenet-200"
    base = inner if inner.is_dir() else root
    for part in ("train", "val"):
        if not (base / part).is_dir():
            raise DataError(f"{root} is expected to hold tiny-imagenet-200 with train and val; {part} is missing")
    train, annotations = class_samples(base / "train"), base / "val" / "val_annotations.txt"
    words = _words(base / "words.txt", train.class_names)
    train = replace(train, class_words=words)
    if not annotations.is_file():
        return Parts(train, None, replace(class_samples(base / "val"), class_words=words))
    fields = sorted(line.split("\t")[:2] for line in annotations.read_text().splitlines() if line)
    names, of_class = [name for name, _ in fields], [label for _, label in fields]
    if unknown := sorted(set(of_class) - set(train.class_names)):
        raise DataError(f"{annotations} names class {unknown[0]}, which has no folder in train")
    images = base / "val" / "images"
    test = _listed(f"{images}/", train.class_names, names, of_class, FolderFiles(images, tuple(names)))
    return Parts(train, None, replace(test, class_words=words))


def _words(path: Path, class_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of each class, from lines "n01443537<TAB>goldfish, Carassius auratus"; None without the file.

    A class that has no line is called by its name. Words that several classes have are followed by the name.
    """
    if not path.is_file():
        return None
    pairs = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    lines = {name: words.strip() for name, words in pairs}
    found = [lines.get(name) or name for name in class_names]
    return tuple(
        words if found.count(words) == 1 else f"{words} ({name})"
        for words, name in zip(found, class_names, strict=True)
    )
