"""`disk-kd probe`: a backbone becomes a teacher, checked before the long work, resumed after a stop."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from disk_kd.build import STUDENT
from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.models import create_model
from disk_kd.models.about import read_about
from disk_kd.models.linear import LinearProbe, with_classifier
from disk_kd.probe.fit import chosen, fit_probe
from disk_kd.trained import trained_model

DIGITS = ["--data.limit_train=100", "--device=cpu"]
BACKBONE = """
    import torch
    from torch import nn

    class Means(nn.Module):
        pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
        seen = 0
        stop_after = None

        def __init__(self, map=False):
            super().__init__()
            self.map = map
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            if Means.stop_after is not None and Means.seen >= Means.stop_after:
                raise KeyboardInterrupt
            Means.seen += len(x)
            return (x, x) if self.map else (self.scale * x.flatten(1), None)

    def make(map=False):
        return Means(map)
"""


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own backbone without timm's interface: the pixels themselves."""
    (tmp_path / "my_backbone.py").write_text(textwrap.dedent(BACKBONE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_backbone", raising=False)
    return "my_backbone:make"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network for grey images, with a classifier of seven other classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(create_model("cifar_resnet10_xxs", num_classes=7, in_chans=1).state_dict(), path)
    return path


def says(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str) -> None:
    capsys.readouterr()
    assert main(["probe", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


def of_net(weights: Path, output: Path) -> list[str]:
    options = '{"mean": [0.5], "std": [0.5]}'
    named = ["--teacher.name=cifar_resnet10_xxs", f"--teacher.weights={weights}", f"--teacher.options={options}"]
    return [*named, f"--output={output}", f"--runs={output.parent}", "--data=digits", *DIGITS]


def test_fit_is_scikit_learns_on_standardised_features() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 6, generator=generator)
    features, labels = noise * torch.tensor([1, 10, 0.1, 1, 1, 0]) + 3, noise[:, :3].argmax(1)
    fitted = fit_probe(features, labels, None, [0.1], 3)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(features, labels)
    ours = (features @ fitted.weight_KD.T + fitted.bias_K).log_softmax(1)
    torch.testing.assert_close(ours.double(), torch.tensor(reference.predict_log_proba(features)), atol=2e-3, rtol=1e-3)
    assert not fitted.weight_KD[:, 5].any()
    two = fit_probe(features, labels.clamp(max=1), None, [0.1], 2)
    assert two.weight_KD.shape == (2, 6)


def test_chosen_c_has_the_lowest_nll_near_the_highest_accuracy() -> None:
    scores = [
        {"C": 1.0, "top1": 90.0, "nll": 0.3},
        {"C": 2.0, "top1": 95.0, "nll": 0.9},
        {"C": 3.0, "top1": 94.9, "nll": 0.5},
    ]
    assert chosen(scores, images=1000) == 3.0
    assert chosen(scores, images=10) == 1.0


@pytest.mark.parametrize("name", ["cifar_resnet10_xxs", "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224"])
def test_classifier_gives_the_same_logits_inside_the_model(name: str) -> None:
    options = {"img_size": 32} if name.startswith("deit") else {}
    model = create_model(name, num_classes=0, **options).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        weight, bias = torch.randn(5, pooled.shape[1]), torch.randn(5)
        whole = with_classifier(model, weight, bias).eval()
        assert isinstance(whole, LinearProbe) == name.startswith("deit")  # which averages two classifiers
        assert torch.equal(whole(images), torch.nn.functional.linear(pooled, weight, bias))


def test_a_probe_is_a_teacher_for_every_command(
    weights: Path, tmp_path: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "probe"
    assert main(["probe", *of_net(weights, folder)]) == 0
    shown = capsys.readouterr().out
    assert "chosen" in shown
    summary = json.loads((folder / "probe.json").read_text())["summary"]
    assert main(["evaluate", str(folder), "--split=validation", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["top1"] == pytest.approx(summary["validation"]["top1"])
    assert measured["nll"] == pytest.approx(summary["validation"]["nll"], rel=1e-2)  # features are stored in half
    body = {key: value for key, value in load_file(weights).items() if not key.startswith("linear")}
    written = load_file(folder / STUDENT)
    assert all(torch.equal(written[key], body[key]) for key in body)
    for extra in (["--teacher.store=true"], ["--teacher.store=false"]):
        run = tmp_path / extra[0].strip("-")
        assert main(["distill", *tiny, f"--teacher.weights={folder}", *extra, f"--output={run}"]) == 0
        assert "name: cifar_resnet10_xxs\n" in (run / "config.yaml").read_text()  # as the file of weights says
    before = (folder / STUDENT).read_bytes()
    assert main(["probe", *of_net(weights, folder)]) == 0
    assert "made before" in capsys.readouterr().out
    assert (folder / STUDENT).read_bytes() == before
    says(capsys, [*of_net(weights, folder), "--grid=[1]"], "was written with another grid; give another --output")


def test_a_students_features_get_a_classifier(tmp_path: Path, weights: Path, tiny: Sequence[str]) -> None:
    run = tmp_path / "run"
    named = of_net(weights, tmp_path / "none")[:3]
    assert main(["distill", *tiny, "--method=feature", *named, f"--output={run}", f"--runs={tmp_path}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert "test" not in summary  # its classifier is not trained
    assert not (run / "best").exists() or not any((run / "best").iterdir())
    assert main(["probe", str(run), f"--output={tmp_path / 'head'}", f"--runs={tmp_path}", "--quiet"]) == 0
    assert read_about(tmp_path / "head" / STUDENT)["model"] == "cifar_resnet10_xxxs"


def test_a_users_backbone_is_wrapped_and_resumed(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["probe", f"--teacher.name={backbone}", "--output=probe", "--data=digits", "--device=cpu", "--quiet"]
    import my_backbone  # type: ignore[import-not-found]

    means = my_backbone.Means
    means.stop_after = 900
    assert main(arguments) == 130
    assert not Path("probe").exists()
    means.stop_after, done, means.seen = None, means.seen, 0
    assert main(arguments) == 0
    dataset = load_dataset("digits")
    assert done + means.seen < len(dataset.train) + len(dataset.validation) + 60  # besides images of checks
    about = read_about(Path("probe") / STUDENT)
    assert about["model"] == f"linear:{backbone}"
    assert about["options"]["features"] == 64
    model = trained_model(about["model"], about["options"], Path("probe") / STUDENT, 10, 1, about)
    assert isinstance(model, LinearProbe)
    capsys.readouterr()
    assert main(["evaluate", "probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 90
    says_of_file = ["evaluate", f"probe/{STUDENT}", "--data=digits"]
    assert main(says_of_file) == 2
    assert f"is for {backbone}. A module is not imported only because a file names it" in capsys.readouterr().err


def test_mistakes_are_told_before_the_backbone_runs(
    backbone: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mistake"
    net = of_net(weights, output)
    says(capsys, ["--data=digits"], "no backbone: give --teacher.name NAME")
    says(capsys, ["--teacher.name=resnet18", "--data=digits"], "the backbone resnet18 has no weights: give")
    says(capsys, [*net, "--views=2"], "the 2 views of each image are the same without augmentation")
    says(capsys, [*net, "--grid=[0.1, -1]"], r"grid must list values of C above 0, not \[0.1, -1")
    says(capsys, [*net, "--gird=[1]"], "unknown option gird; nearest: grid")
    says(capsys, [*net, "--data.validation=0", "--grid=[1, 2]"], "no validation split to choose C of grid on")
    says(capsys, [*net, "--teacher.classes=auto"], "a probe does not read the backbone's classes")
    says(
        capsys,
        [*net, "--data.limit_train=10"],
        "has 1 labelled training images .* a probe needs at least 2 of each class",
    )
    mapped = [f"--teacher.name={backbone}", "--teacher.options={map: true}", "--data=digits"]
    says(capsys, mapped, r"the backbone Means gives \(1, 1, 8, 8\), not pooled features \(B, D\)")
    says(
        capsys,
        ["--teacher.name=linear:resnet18", f"--teacher.weights={weights}", "--data=digits"],
        "has a linear classifier",
    )
    output.mkdir()
    (output / "other.txt").write_text("")
    says(capsys, net, "holds something else .*give another --output")
    assert not list(tmp_path.glob("teacher-store/*"))


def test_without_a_validation_split_c_has_a_default(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "probe"
    assert main(["probe", *of_net(weights, folder), "--data.validation=0"]) == 0
    assert "There is no validation split to choose C on: C is 0.01" in capsys.readouterr().out
    summary = json.loads((folder / "probe.json").read_text())["summary"]
    assert summary["C"] == 0.01
    assert summary["validation"] is None
