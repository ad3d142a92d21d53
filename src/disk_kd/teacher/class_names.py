"""The classes of a teacher by name, WordNet id or number, and the mapping that `teacher.classes` describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

from timm.data import ImageNetInfo, infer_imagenet_subset

from disk_kd.errors import ConfigError, DataError, nearest
from disk_kd.teacher.label_map import LabelMap

Classes = Literal["auto"] | Mapping[str, int | str | Sequence[int | str]]
"""The option `teacher.classes`, if it is given."""

_WORDNET_ID = re.compile(r"n\d{8}")


class ClassNames:
    """The classes of a teacher, found by label, WordNet id or words.

    Upper case, underscores and hyphens do not count. A WordNet id also has the words that WordNet gives it. A name that
    fits several classes is sought among labels first, then among first words, then among all synonyms.

    Args:
        labels: label of each class, in the order of the logits.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        words = [words_of(label) for label in self.labels]
        self._words = words
        levels = ([[label] for label in self.labels], [some[:1] for some in words], words)
        self._levels = tuple(_by_key(level) for level in levels)

    def __len__(self) -> int:
        return len(self.labels)

    def shown(self, number: int) -> str:
        """Name of a class for people: its label, and its first word if the label is a WordNet id."""
        label, words = self.labels[number], self._words[number]
        return f"{label} ({words[0]})" if words and words[0] != label else label

    def find(self, name: str) -> list[int]:
        """The numbers of the classes that a name means: one if it is unambiguous, none if it is unknown."""
        key = _key(name)
        return next((level[key] for level in self._levels if key in level), [])

    def nearest(self, name: str) -> str:
        """The phrase that names the classes nearest to a name."""
        known = {_key(each): each for words in (self.labels, *self._words) for each in words}
        return nearest(_key(name), known) if _key(name) else f"classes: {', '.join(self.labels[:3])} ..."


def class_names(labels: Sequence[str] | None, num_classes: int) -> ClassNames | None:
    """The classes of a teacher: by its own labels, else ImageNet's if the number of classes says so; None if unknown.

    Args:
        labels: labels that its file of weights or its settings state; None: none.
        num_classes: number of its classes.
    """
    if labels is not None and len(labels) == num_classes:
        return ClassNames(list(map(str, labels)))
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else _imagenet(subset)


@cache
def _imagenet(subset: str) -> ClassNames:
    return ClassNames(ImageNetInfo(subset).label_names())


def words_of(label: str) -> list[str]:
    """The words of a WordNet id, or of a label that lists synonyms: `tench, Tinca tinca`."""
    text = _lemmas(label) if _WORDNET_ID.fullmatch(label) else label
    return [word.strip() for word in text.split(",") if word.strip()]


def map_labels(classes: Classes, ours: Sequence[str], theirs: ClassNames | None, num_theirs: int) -> LabelMap:
    """The mapping that the option `teacher.classes` describes.

    Args:
        classes: "auto", or the teacher's classes for each class of the data.
        ours: the names of the data's classes.
        theirs: the teacher's classes; None: their names are not known.
        num_theirs: number of the teacher's classes.

    Raises:
        ConfigError: the mapping lacks a class of the data, names an unknown class, or uses a teacher's class twice.
        DataError: `auto` finds no class of the teacher for a class of the data, or several.
    """
    if classes == "auto":
        groups = [[number] for number in _matched(ours, theirs, num_theirs)]
    else:
        assert not isinstance(classes, str)
        groups = _listed(classes, ours, theirs, num_theirs)
    _check_once(groups, ours, theirs)
    names = [[str(n) if theirs is None else theirs.shown(n) for n in group] for group in groups]
    return LabelMap(groups, num_theirs, names)


def _matched(ours: Sequence[str], theirs: ClassNames | None, num_theirs: int) -> list[int]:
    if theirs is None:
        raise DataError(
            f"the names of the teacher's {num_theirs} classes are not known, so teacher.classes auto cannot match them;"
            " give a mapping with their numbers: --teacher.classes '{CLASS: NUMBER}'"
        )
    return [_match(name, theirs) for name in ours]


def _match(name: str, theirs: ClassNames) -> int:
    for each in (name, *words_of(name)):
        found = theirs.find(each)
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"the class {name!r} of the data fits several classes of the teacher,"
                f" {_several(theirs, found)}; map it in teacher.classes"
            )
    raise DataError(
        f"no class of the teacher has the name of {name!r}, a class of the data; {theirs.nearest(name)}; map it in"
        " teacher.classes"
    )


def _listed(
    classes: Mapping[str, int | str | Sequence[int | str]],
    ours: Sequence[str],
    theirs: ClassNames | None,
    num_theirs: int,
) -> list[list[int]]:
    keys = {_own_class(str(key), ours): value for key, value in classes.items()}
    if missing := [name for name in ours if name not in keys]:
        near = "" if theirs is None else f"; {theirs.nearest(missing[0])}"
        raise ConfigError(
            f"teacher.classes maps no class of the teacher to {missing[0]!r}, a class of the data{near}; add it"
        )
    groups = []
    for name in ours:
        value = keys[name]
        named = [value] if isinstance(value, int | str) else list(value)
        if not named:
            raise ConfigError(f"teacher.classes maps no class of the teacher to {name!r}, a class of the data; add one")
        groups.append([_their_class(each, name, theirs, num_theirs) for each in named])
    return groups


def _own_class(key: str, ours: Sequence[str]) -> str:
    """The class of the data that a key of the mapping means: its name, else its number."""
    by_key = {_key(name): name for name in ours}
    if key in ours:
        return key
    if _key(key) in by_key:
        return by_key[_key(key)]
    if key.isdecimal() and int(key) < len(ours):
        return ours[int(key)]
    raise ConfigError(f"teacher.classes names {key!r}, which is no class of the data; {nearest(key, ours)}")


def _their_class(value: int | str, name: str, theirs: ClassNames | None, num_theirs: int) -> int:
    found = theirs.find(value) if isinstance(value, str) and theirs is not None else []
    if len(found) == 1:
        return found[0]
    if len(found) > 1 and theirs is not None:
        raise ConfigError(
            f"teacher.classes gives {value!r} for {name!r}, which fits several classes of the teacher,"
            f" {_several(theirs, found)}; give the WordNet id or the number"
        )
    if isinstance(value, int) or value.isdecimal():
        if not 0 <= int(value) < num_theirs:
            raise ConfigError(
                f"teacher.classes gives {value} for {name!r}, but the teacher has classes 0 to {num_theirs - 1}"
            )
        return int(value)
    if theirs is None:
        raise ConfigError(
            f"teacher.classes gives {value!r} for {name!r}, but the names of the teacher's {num_theirs} classes are not"
            " known; give numbers"
        )
    raise ConfigError(
        f"teacher.classes gives {value!r} for {name!r}, which is no class of the teacher; {theirs.nearest(value)}"
    )


def _check_once(groups: Sequence[Sequence[int]], ours: Sequence[str], theirs: ClassNames | None) -> None:
    """Refuse a class of the teacher in two groups, because the groups' probabilities would not sum to one."""
    used: dict[int, str] = {}
    for name, group in zip(ours, groups, strict=True):
        for number in group:
            if number in used:
                shown = str(number) if theirs is None else theirs.shown(number)
                raise ConfigError(
                    f"teacher.classes uses the teacher's class {shown} for {used[number]!r} and {name!r}; use each once"
                )
            used[number] = name


def _several(theirs: ClassNames, numbers: Iterable[int]) -> str:
    return " and ".join(f"{theirs.shown(number)}, number {number}" for number in numbers)


def _by_key(names: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, some in enumerate(names):
        for key in dict.fromkeys(map(_key, some)):
            found.setdefault(key, []).append(number)
    return found


def _key(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


@cache
def _lemmas(wordnet_id: str) -> str:
    try:
        return _wordnet().label_name_to_description(wordnet_id)
    except KeyError:
        return wordnet_id


@cache
def _wordnet() -> ImageNetInfo:
    return ImageNetInfo("imagenet-1k")
