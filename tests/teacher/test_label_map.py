"""Another label set: the formula against a slow loop, identities, and how classes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from store_cases import CLASSES, Net

from disk_kd.errors import ConfigError, DataError, ModelError
from disk_kd.teacher import LabelMap, Teacher, class_names, map_labels, teacher_facts
from disk_kd.teacher.class_names import ClassNames

IMAGENET = class_names(None, 1000)
PETS = ClassNames(["cat", "dog", "sea_lion", "horse"])


def logits(*size: int) -> torch.Tensor:
    return 10 * torch.randn(size, generator=torch.Generator().manual_seed(0))


def test_it_is_the_slow_formula_of_numpy() -> None:
    groups, z_BK = [[4], [0, 2, 5], [1, 6]], logits(7, 8)
    expected = np.empty((7, 3))
    for row in range(7):
        for c, group in enumerate(groups):
            expected[row, c] = np.log(sum(np.exp(float(z_BK[row, k])) for k in group))
    np.testing.assert_allclose(LabelMap(groups, 8)(z_BK).numpy(), expected, rtol=1e-6)


def test_probabilities_of_merged_classes_add_and_those_of_kept_ones_are_renormalised() -> None:
    z_BK = logits(5, 6)
    p_BK, q_BC = z_BK.softmax(1), LabelMap([[3], [0, 1]], 6)(z_BK).softmax(1)
    kept_B = p_BK[:, 3] + p_BK[:, 0] + p_BK[:, 1]
    torch.testing.assert_close(q_BC[:, 0], p_BK[:, 3] / kept_B)
    torch.testing.assert_close(q_BC[:, 1], (p_BK[:, 0] + p_BK[:, 1]) / kept_B)


def test_a_permutation_permutes_and_one_class_keeps_its_logit_exactly() -> None:
    z_BK = logits(5, 6)
    order = [4, 0, 5, 1, 3, 2]
    assert LabelMap([[k] for k in order], 6)(z_BK).equal(z_BK[:, order])
    assert LabelMap([[2], [0, 1]], 6)(z_BK)[:, 0].equal(z_BK[:, 2])


def test_it_computes_in_single_precision_and_keeps_masked_classes_masked() -> None:
    far = torch.tensor([[60000.0, 60000.0, -torch.inf, -torch.inf]])
    mapped = LabelMap([[0, 1], [2, 3]], 4)(far.half())
    assert mapped.dtype == torch.float32
    assert mapped[0].tolist() == [pytest.approx(60000 + np.log(2), abs=1e-2), -np.inf]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0], []], "no class of the teacher is mapped to class 1"),
        ([[0], [1, 0]], "class 0 of the teacher is mapped twice"),
        ([[0], [5]], "the teacher has classes 0 to 4, not 5"),
        ([], "no class of the teacher is mapped"),
    ],
)
def test_groups_that_are_none(groups: list[list[int]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LabelMap(groups, 5)


def test_logits_of_another_number_are_refused() -> None:
    with pytest.raises(ModelError, match=r"gives 6 logits, but teacher\.classes maps 5 classes"):
        LabelMap([[0]], 5)(logits(2, 6))


@pytest.mark.parametrize(
    "names",
    [
        ["n01440764", "n02102040", "n03000684"],
        ["tench", "English springer", "chain saw"],
        ["Tench", "english_springer", "chainsaw"],
        ["tench, Tinca tinca", "English springer, English springer spaniel", "chain saw, chainsaw"],
    ],
)
def test_auto_matches_wordnet_ids_and_words(names: list[str]) -> None:
    found = map_labels("auto", names, IMAGENET, 1000)
    assert found.groups == ((0,), (217,), (491,))
    assert found.names[0] == ("n01440764 (tench)",)


def test_auto_matches_wordnet_ids_of_the_data_with_words_of_the_teacher() -> None:
    assert map_labels("auto", ["n02077923", "dog"], PETS, 4).groups == ((2,), (1,))


def test_a_mapping_names_classes_by_name_wordnet_id_or_number() -> None:
    given = {"1": ["tench", 217], "fruit": "n07753592"}
    found = map_labels(given, ["fruit", "animal"], IMAGENET, 1000)
    assert found.groups == ((954,), (0, 217))
    assert map_labels({"a": "3", "b": [0, 1]}, ["a", "b"], None, 4).groups == ((3,), (0, 1))


@pytest.mark.parametrize(
    ("classes", "names", "theirs", "message"),
    [
        (
            "auto",
            ["cat", "dgo"],
            PETS,
            "no class of the teacher has the name of 'dgo', a class of the data; nearest: dog",
        ),
        ("auto", ["crane"], IMAGENET, r"'crane' of the data fits several .* n02012849 \(crane\), number 134 and"),
        ("auto", ["cat"], None, "the names of the teacher's 4 classes are not known"),
    ],
)
def test_what_auto_cannot_match(classes: str, names: list[str], theirs: ClassNames | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        map_labels("auto", names, theirs, 4 if theirs is None else len(theirs))


@pytest.mark.parametrize(
    ("classes", "theirs", "message"),
    [
        ({"a": "cat"}, PETS, "teacher.classes maps no class of the teacher to 'b', a class of the data"),
        ({"a": "cat", "b": []}, PETS, "maps no class of the teacher to 'b', a class of the data; add one"),
        ({"a": "cat", "b": "dgo"}, PETS, "gives 'dgo' for 'b', which is no class of the teacher; nearest: dog"),
        ({"a": "cat", "b": 4}, PETS, "gives 4 for 'b', but the teacher has classes 0 to 3"),
        ({"a": "cat", "b": ["dog", 0]}, PETS, "uses the teacher's class cat for 'a' and 'b'; use each once"),
        ({"a": "cat", "b": "dog", "x": 3}, PETS, "names 'x', which is no class of the data; valid: a, b"),
        ({"a": "cat", "b": 1}, None, "gives 'cat' for 'a', but the names of the teacher's 4 classes are not known"),
        ({"a": "crane", "b": 1}, IMAGENET, "'crane' for 'a', which fits several .* give the WordNet id or the number"),
    ],
)
def test_a_wrong_mapping_is_refused(classes: dict[str, int | str], theirs: ClassNames | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        map_labels(classes, ["a", "b"], theirs, 4 if theirs is None else len(theirs))


def test_a_teacher_maps_its_logits_and_leaves_its_features() -> None:
    images, options = torch.randn(3, 3, 4, 4), {"input_mean": (0.5,) * 3, "input_std": (0.25,) * 3}
    needs = {"logits", "pooled", "regions1-2"}
    label_map = LabelMap([[1], [4, 0]], CLASSES)
    plain, mapped = (Teacher(Net(), needs=needs, label_map=each, **options) for each in (None, label_map))
    theirs, ours = plain(images), mapped(images)
    assert ours["pooled"].equal(theirs["pooled"])
    assert ours["logits"].equal(label_map(theirs["logits"]))
    assert ours["regions1-2"].shape == (3, 5, 2)
    assert (plain.num_classes, mapped.num_classes) == (CLASSES, 2)
    assert teacher_facts(mapped) == teacher_facts(plain) | {"teacher_classes": ((1,), (4, 0))}
    student = Net(classes=2)
    assert Teacher.of(mapped, student).label_map is label_map
    with pytest.raises(ModelError, match="teacher has 5 classes, the student 2"):
        Teacher.of(plain, student)
