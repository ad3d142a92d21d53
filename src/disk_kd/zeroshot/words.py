"""The word of each class, for prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from disk_kd.data import Dataset
from disk_kd.errors import DataError, nearest, one_line, shown
from disk_kd.files import read_yaml

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENETS = ("imagenet-1k", "imagenet-22k-ms", "imagenet-22k")


def class_words(dataset: Dataset, names: Path | None = None) -> tuple[str, ...]:
    """The word of each class, in label order.

    The first of these that exists: the file of names; the dataset's own words; the words of WordNet ids such as
    n01440764; the class names with spaces in the place of underscores.

    Args:
        dataset: gives the classes.
        names: a YAML or JSON mapping from each class name to its word, or one word in a line in label order.

    Raises:
        DataError: the file cannot be read, or its names do not match the classes; two classes have the same word; or a
            WordNet id is unknown.
    """
    if names is not None:
        words = _of_file(names, dataset.class_names)
    elif dataset.train.class_words is not None:
        words = tuple(map(_first, dataset.train.class_words))
    elif all(map(_WORDNET_ID.fullmatch, dataset.class_names)):
        words = tuple(map(_of_wordnet_id, dataset.class_names))
    else:
        words = tuple(name.replace("_", " ") for name in dataset.class_names)
    _check_different(words, dataset.class_names)
    return words


def _first(words: str) -> str:
    """The first of several words with commas between them."""
    return words.partition(",")[0].strip()


def _of_wordnet_id(name: str) -> str:
    for subset in _IMAGENETS:
        try:
            return _first(ImageNetInfo(subset).label_name_to_description(name))
        except (KeyError, AssertionError, ValueError, FileNotFoundError):
            continue
    raise DataError(
        f"the WordNet id {name} is in none of timm's lists of ImageNet; give --names FILE with a word for it"
    )


def _of_file(file: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """The words in a file."""
    if file.suffix in (".yaml", ".yml", ".json"):
        return _of_mapping(file, read_yaml(file), classes)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the names in {file} ({one_line(error)}); give a text or YAML file") from None
    if len(lines) != len(classes):
        raise DataError(f"{file} has {len(lines)} names, the dataset has {len(classes)} classes; write one in a line")
    return tuple(lines)


def _of_mapping(file: Path, content: Any, classes: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(content, dict) or not all(isinstance(word, str) for word in content.values()):
        raise DataError(f"{file} must map each class name to a word, such as n01440764: tench")
    found = {str(name): word for name, word in content.items()}
    if unknown := next((name for name in found if name not in classes), None):
        raise DataError(
            f"{file} names {shown(unknown)!r}, which is no class of the dataset; {nearest(unknown, classes)}"
        )
    if missing := next((name for name in classes if name not in found), None):
        raise DataError(f"{file} has no word for the class {shown(missing)!r}; add one")
    return tuple(found[name] for name in classes)


def _check_different(words: Sequence[str], classes: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for word, name in zip(words, classes, strict=True):
        if not word:
            raise DataError(f"the class {shown(name)!r} has an empty word; give --names FILE with a word for it")
        if word in seen:
            raise DataError(
                f"the classes {shown(seen[word])!r} and {shown(name)!r} have the same word, {shown(word)!r}; give"
                " --names FILE with different ones"
            )
        seen[word] = name
