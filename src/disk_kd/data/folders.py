"""Class folders, tar files of class folders, and Tiny-ImageNet's own layout.

A class is a folder. Labels follow the alphabetical order of the classes, and samples the order of their paths, so a
folder and a tar of it are the same dataset.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch

from disk_kd.data.decode import ENDINGS
from disk_kd.data.samples import Parts, Samples
from disk_kd.data.stream import Files
from disk_kd.data.tars import TarFiles, is_hidden, tar_members
from disk_kd.errors import DataError, shown

_BESIDE_IMAGES = (".txt", ".csv", ".json", ".xml", ".db", ".ini")
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
"""Names of the splits."""
_UNLABELLED = ("unlabelled", "unlabeled")
_EXPECTED = ("train", "val", "validation", "test")
_EITHER = ("eval", "evaluation", "holdout")
_ARCHIVES = (".zip", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".7z", ".rar")


def folder_parts(root: Path, unlabelled: Path | None = None) -> Parts:
    """`train`, `val` and `test` of a root: folders of class folders, or tars of them. Other names give a warning.

    Args:
        root: folder of the splits.
        unlabelled: source of the unlabelled images, if there are any. Then there may be no training split.

    Raises:
        DataError: there is no training split, a split exists twice, or a folder could be either split.
    """
    try:
        beside = [path for path in sorted(root.iterdir()) if not is_hidden(path.name)]
    except OSError as error:
        _refuse(error)
    found: dict[str, list[Path]] = {name: [] for name in (*SPELLINGS, "")}
    for path in beside:
        if path.is_dir() or path.suffix.lower() == ".tar":
            found[_split_of(path)].append(path)
    for name, paths in found.items():
        if name and len(paths) > 1:
            listed = ", ".join(path.name for path in paths)
            raise DataError(f"{root} is expected to hold one {name} split, it holds {listed}; move the others")
    read_elsewhere = None if unlabelled is None else unlabelled.resolve()
    found[""] = [path for path in found[""] if path.resolve() != read_elsewhere]
    if not found["train"] and (unlabelled is None or not (found["validation"] or found["test"])):
        held = ", ".join(path.name for path in beside[:5]) or "nothing"
        raise DataError(f"{root} is expected to hold a folder train, train.tar or *-train.tar; it holds {held}")
    missing = [name for name in SPELLINGS if not found[name] and (name != "train" or unlabelled is None)]
    for path in beside:
        if path.name.lower().endswith(_ARCHIVES) and _split_of(path) in missing:
            raise DataError(f"{path} is not read: unpack it, pack it as an uncompressed tar, or move it")
    _warn_unread(root, found[""], bool(missing))
    read = {name: class_samples(paths[0]) for name, paths in found.items() if name and paths}
    for name, paths in found.items():
        if name and paths and _last_word(paths[0]) not in _EXPECTED:
            warnings.warn(f"{paths[0]} is read as the {name} split", stacklevel=2)
    train = read.get("train") or no_samples(next(iter(read.values())).class_names)
    return Parts(train, read.get("validation"), read.get("test"))


def no_samples(class_names: tuple[str, ...] = ()) -> Samples:
    """A split of these classes without samples."""
    return Samples(class_names, torch.zeros(0, dtype=torch.int64), FolderFiles(Path(), ()), ())


def _last_word(path: Path) -> str:
    """The part of a folder's or archive's name that may name its split: after the last hyphen."""
    return path.name if path.is_dir() else path.name.partition(".")[0].rpartition("-")[2]


def _split_of(path: Path) -> str:
    """The split that a folder or archive is named for; "": none."""
    word = _last_word(path).lower()
    return next((name for name, spellings in SPELLINGS.items() if word in spellings), "")


def _warn_unread(root: Path, others: list[Path], missing: bool) -> None:
    """Warn about folders and tars that are no split; raise an error if one may be the missing split."""
    for path in others:
        if missing and _last_word(path).lower() in _EITHER:
            raise DataError(f"{path} may be for validation or for test; rename it to val or test, or move it")
        if _last_word(path).lower() in _UNLABELLED:
            warnings.warn(f"{path} is not read; to learn from its images give data.unlabelled {path}", stacklevel=3)
    others = [path for path in others if _last_word(path).lower() not in _UNLABELLED]
    if others:
        listed = ", ".join(shown(path.name) for path in others[:5])
        warnings.warn(f"{root} holds {listed}, which are not read: splits are named train, val and test", stacklevel=3)


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder by their position in a list of names."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self, number: int) -> bytes:
        with open(self.folder / self.names[number], "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("it is not a regular file")
            return file.read()

    def stamp(self, number: int) -> str:
        """Size and modification time of the file."""
        about = os.stat(os.path.join(self.folder, self.names[number]))  # Path would take longer than the disk
        return f"{about.st_size} {about.st_mtime_ns}"


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: opening a pipe would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def class_samples(path: Path) -> Samples:
    """The images in a folder, or plain tar, of class folders. Hidden files and folders are left out.

    Raises:
        DataError: a tar or folder cannot be read, there are no class folders, a single folder contains all others, or a
            class has no images.
    """
    return _tar_samples(path) if path.is_file() else _folder_samples(path)


def is_image(name: str) -> bool:
    """Whether a file name has the ending of an image."""
    return name.lower().endswith(ENDINGS)


def _folder_samples(path: Path) -> Samples:
    folders: list[str] = []
    files: list[str] = []
    for folder, inner, names in walk(path):
        around = os.path.relpath(folder, path).replace(os.sep, "/") + "/"
        around = around.removeprefix("./")
        folders += [around + name for name in inner]
        files += [around + name for name in names]
    names, of_class = _sorted(f"{path}/", folders, files)
    return _listed(f"{path}/", names, of_class, FolderFiles(path, tuple(names)))


def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Folders, the folders in each, and its files. Links are followed, except those to a parent folder."""
    for folder, inner, names in os.walk(top, onerror=_refuse, followlinks=True):
        inner[:] = [name for name in inner if not is_hidden(name)]
        for link in (os.path.join(folder, name) for name in inner):
            if os.path.islink(link) and Path(folder).resolve().is_relative_to(Path(link).resolve()):
                raise DataError(f"{link} leads back to a folder around it, {os.path.realpath(link)}; remove the link")
        yield folder, inner, [name for name in names if not is_hidden(name)]


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}; make it readable or remove it")


def _tar_samples(path: Path) -> Samples:
    members = tar_members(path)
    images = [name for name, member in members.items() if member.isfile() and is_image(name)]
    tops = {name.split("/")[0] for name in images}
    # a tar of the folder `train` has that one folder around all its classes
    around = f"{tops.pop()}/" if len(tops) == 1 and all(name.count("/") > 1 for name in images) else ""
    members = {name.removeprefix(around): member for name, member in members.items()}
    folders = [name for name, member in members.items() if member.isdir() and f"{name}/" != around]
    names, of_class = _sorted(f"{path}:", folders, [name for name in members if not members[name].isdir()])
    contents = TarFiles((path, members[name].offset_data, members[name].size) for name in names)
    return _listed(f"{path}:", names, of_class, contents)


def _sorted(where: str, folders: Iterable[str], files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of images class/…/file in order, and their classes. `where` is the prefix of names in messages."""
    names = sorted((n for n in files if "/" in n and is_image(n)), key=lambda name: (name.split("/")[0], name))
    if not names:
        raise DataError(f"{where[:-1]} is expected to hold class folders with images, it holds none")
    of_class = [name.split("/")[0] for name in names]
    classes = {name.split("/")[0] for name in [*folders, *(n for n in files if "/" in n)]} - {"."}
    if empty := sorted(classes - set(of_class)):
        raise DataError(f"{where[:-1]}: class folder {empty[0]} holds no images; fill or remove it")
    inner = sorted({name.split("/")[1] for name in names if name.count("/") > 1})
    if len(classes) == 1 and inner:
        listed = ", ".join(inner[:5])
        raise DataError(
            f"{where[:-1]} has one class folder, {names[0].split('/')[0]}, which holds the folders {listed}; "
            "if these are the classes, move them one level up"
        )
    warn_skipped(where, set(files) - set(names))
    return names, of_class


def warn_skipped(where: str, names: Iterable[str], expected: str = "images in class folders") -> None:
    """Warn about skipped files that are not images, except for usual notes beside images.

    Args:
        where: prefix of the names in messages.
        names: the skipped files.
        expected: what the files are not.
    """
    others = sorted(name for name in names if not name.lower().endswith(_BESIDE_IMAGES))
    if others:
        warnings.warn(
            f"left out: files of {shown(where[:-1])} that are not {expected} ({len(others)}, such as "
            f"{shown(others[0])}); images end in {' '.join(ENDINGS)}",
            stacklevel=2,
        )


def _listed(
    where: str, names: Iterable[str], of_class: list[str], files: Files, classes: tuple[str, ...] | None = None
) -> Samples:
    """Samples with the classes that occur, or with `classes` if given."""
    classes = classes or tuple(sorted(set(of_class)))
    number = {name: label for label, name in enumerate(classes)}
    paths = tuple(shown(f"{where}{name}") for name in names)
    return Samples(classes, torch.tensor([number[name] for name in of_class]), files, paths)


def tiny_imagenet_parts(root: Path) -> Parts:
    """Tiny-ImageNet-200 in its original layout, or with its `val` sorted into class folders.

    Its labelled `val` is the test split, because the archive's test images have no labels. The display names of the
    classes come from the archive's `words.txt`, if it exists.

    Raises:
        DataError: the layout is different, or an annotation names an unknown class.
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
    text = annotations.read_text(encoding="utf-8", errors="surrogateescape")
    rows = sorted(line.split("\t")[:2] for line in text.splitlines() if line)
    if odd := next((row for row in rows if len(row) < 2), None):
        raise DataError(f"{annotations} is expected to hold lines FILE<TAB>CLASS<TAB>…, it has the line {odd[0]!r}")
    names, of_class = [name for name, _ in rows], [label for _, label in rows]
    if unknown := sorted(set(of_class) - set(train.class_names)):
        raise DataError(f"{annotations} names class {unknown[0]}, which has no folder in train")
    images = base / "val" / "images"
    warn_skipped(f"{images}/", {path.name for path in images.iterdir() if not is_hidden(path.name)} - set(names))
    test = _listed(f"{images}/", names, of_class, FolderFiles(images, tuple(names)), train.class_names)
    return Parts(train, None, replace(test, class_words=words))


def _words(path: Path, class_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of each class, from lines "n01443537<TAB>goldfish, Carassius auratus"; None without the file.

    A class without a line is shown by its name. If several classes have the same words, the name is added.
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    lines = {name: words.strip() for name, words in pairs}
    found = [lines.get(name) or name for name in class_names]
    return tuple(
        words if found.count(words) == 1 else f"{words} ({name})"
        for words, name in zip(found, class_names, strict=True)
    )
