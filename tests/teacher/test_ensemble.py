"""Several teachers as one: the average, what is refused, and stored outputs that are those of running teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from store_cases import CLASSES, VIEWS, Net, SeededLoader, build, teacher

from disk_kd.errors import ConfigError, ModelError
from disk_kd.options import plain
from disk_kd.tasks import KDTask
from disk_kd.teacher import Ensemble, LabelMap, Teacher, feature_sizes, frozen_teacher, joint_store
from disk_kd.teacher.ensemble import Average
from disk_kd.teacher.settings import EnsembleSettings, TeacherSettings, read_teacher

PIXELS = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def pair() -> list[Teacher]:
    return [teacher(1.0), teacher(3.0)]


def test_probabilities_are_averaged_by_weight() -> None:
    members = pair()
    first, second = (member(PIXELS)["logits"].softmax(1) for member in members)
    mean = Ensemble(members, [1, 3], "probabilities")(PIXELS)["logits"].softmax(1)
    torch.testing.assert_close(mean, first / 4 + 3 * second / 4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_average_to_the_geometric_mean_at_every_temperature(temperature: float) -> None:
    members = pair()
    logs = [(member(PIXELS)["logits"] / temperature).log_softmax(1) for member in members]
    expected = (0.25 * logs[0] + 0.75 * logs[1]).softmax(1)
    mean = Ensemble(members, [1, 3], "logits")(PIXELS)["logits"]
    torch.testing.assert_close((mean / temperature).softmax(1), expected)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_the_average_of_one_prediction_is_that_prediction(combine: str) -> None:
    z_BC = 1000 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).half()
    mean_BC = Average([0.1, 2.0, 5.0], combine)([z_BC] * 3)  # type: ignore[arg-type]
    assert mean_BC.dtype == torch.float32
    torch.testing.assert_close(mean_BC.softmax(1), z_BC.float().softmax(1))


def test_a_task_learns_from_it_and_moves_no_teacher() -> None:
    student, members = Net(), pair()
    ensemble = Ensemble(members)
    task = KDTask(student, ensemble)
    loss = task(PIXELS, torch.zeros(6, dtype=torch.int64))["loss"]
    loss.backward()
    assert student.fc.weight.grad is not None
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert task.teacher is not None
    assert not task.train().teacher.training
    assert task.teacher.members[0].model is members[0].model


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_stored_outputs_are_those_of_the_running_teachers(combine: str, tmp_path: Path) -> None:
    ensemble = Ensemble(pair(), [2, 1], combine)  # type: ignore[arg-type]
    loader = SeededLoader()
    stores = [build(tmp_path / str(number), member) for number, member in enumerate(ensemble.members)]
    store = joint_store(stores, ensemble.joined)
    assert store.members == tuple(stores)
    assert joint_store(stores[:1], ensemble.joined) is stores[0]
    for view in range(VIEWS):
        for batch in loader.batches(view):
            stored = store.read(batch.ids, view, "cpu")["logits"]
            torch.testing.assert_close(
                stored.softmax(1), ensemble(batch.images)["logits"].softmax(1), atol=2e-3, rtol=0
            )


def test_what_is_no_ensemble() -> None:
    with pytest.raises(ConfigError, match="an ensemble has two teachers or more"):
        Ensemble(pair()[:1])
    for weights in ([1, 0], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ConfigError, match="weights of teachers must be above 0 and finite"):
            Ensemble(pair(), weights)
    with pytest.raises(ConfigError, match="cannot be combined by 'logit'; nearest: logits"):
        Ensemble(pair(), combine="logit")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="the teachers have 5 and 7 classes; map their classes"):
        Ensemble([teacher(), teacher(classes=7)])
    mapped = Teacher(
        Net(classes=7), input_mean=(0.5,) * 3, input_std=(0.25,) * 3, label_map=LabelMap([[k] for k in range(5)], 7)
    )
    assert Ensemble([teacher(), mapped]).num_classes == CLASSES
    with pytest.raises(ModelError, match="batches of different normalisations"):
        Ensemble([teacher(), Teacher(Net(), input_mean=(0.1,), input_std=(0.25,))])


def test_features_of_an_ensemble_are_refused() -> None:
    ensemble = Ensemble(pair())
    with pytest.raises(ModelError, match="several teachers give logits only, not map; give one teacher"):
        frozen_teacher(ensemble, Net(), {"logits", "map"})
    for read in (lambda: ensemble.model, lambda: ensemble.given, lambda: feature_sizes(ensemble)):
        with pytest.raises(ModelError, match="several teachers give logits only, not features"):
            read()


def test_settings_of_several_teachers() -> None:
    settings = read_teacher({"members": ["a", {"name": "b", "weight": 2}], "store": False})
    assert isinstance(settings, EnsembleSettings)
    assert settings.name == "a + b"
    assert [one.store for one in settings.each] == [False, False]
    assert [one["weight"] for one in plain(settings)["members"]] == [1.0, 2.0]
    assert isinstance(read_teacher({"name": "a"}), TeacherSettings)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"members": ["a"]}, "teacher.members must list two teachers or more, not 1"),
        ({"members": "a"}, "teacher.members must be a list such as"),
        ({"members": ["a", {"name": "b", "nmae": 1}]}, r"unknown option teacher\.members\.1\.nmae"),
        ({"members": ["a", 3]}, r"teacher\.members\.1 must be a mapping of options, not 3"),
        ({"members": ["a", {"name": "b", "store": True}]}, r"teacher\.members\.1\.store: all teachers are stored"),
        (
            {"members": ["a", "b"], "precision": "bf16"},
            r"teacher\.precision is an option of one teacher; give it inside",
        ),
        ({"members": ["a", "b"], "combine": "mean"}, r"teacher\.combine must be one of probabilities, logits"),
        ({"members": ["a", {"name": "b", "weight": 0}]}, r"teacher\.weight must be above 0 and finite, not 0"),
        ({"combine": "logits"}, r"teacher\.combine is for several teachers"),
    ],
)
def test_wrong_settings(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_teacher(tree)
