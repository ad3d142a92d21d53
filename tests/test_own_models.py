"""Models of a user's own: by my_module:make, registered with timm by a module that is imported, and never by a file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from disk_kd.build import STUDENT
from disk_kd.cli import main
from disk_kd.errors import ConfigError, ModelError
from disk_kd.models import create_model, save_state_dict
from disk_kd.models.about import METADATA, read_about
from processes import done_anew

pytestmark = pytest.mark.filterwarnings("ignore:Overwriting own_net in registry")

NETS = """
from pathlib import Path
from timm.models import register_model
from torch import nn
from shutil import copy

Path("imported").touch()


class Net(nn.Sequential):
    def __init__(self, num_classes, in_chans=3, width=8):
        super().__init__(
            *(nn.Conv2d(in_chans, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes)),
        )


@register_model
def own_net(pretrained=False, num_classes=10, in_chans=3, width=8, **kwargs):
    return Net(num_classes, in_chans, width)


def fixed():
    return Net(10, 1)


def trained(num_classes, pretrained):
    assert pretrained
    return Net(num_classes, 1)


def anything(**options):
    return Net(**options)


def failing(num_classes):
    raise KeyError("no such\\nthing")


def odd(num_classes, in_chans):
    net = Net(num_classes, in_chans)
    net.forward = lambda x: x.nothing
    return net


def text(num_classes):
    return "a model"


net = Net(10, 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules of the user's, which are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    (tmp_path / "own_nets.py").write_text(NETS)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def done(*arguments: str) -> None:
    assert main(arguments) == 0, arguments


def refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2, arguments
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> float:
    capsys.readouterr()
    done("evaluate", "--json", *arguments)
    return json.loads(capsys.readouterr().out)["nll"]


def test_a_model_by_module_and_name(folder: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    loud = [option for option in tiny if option != "--quiet"]
    done("train", *loud, "--student.name=own_nets:Net", "--student.options={width: 4}", "--output=run")
    notice = "own_nets:Net does not say how its images are normalised: it learns with mean [0.5] and std [0.5]"
    assert notice in capsys.readouterr().out
    about = read_about(folder / "run" / STUDENT)
    assert (about["model"], about["options"], about["mean"], about["std"]) == (
        "own_nets:Net",
        {"width": 4},
        [0.5],
        [0.5],
    )
    first, *_, last = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert first["kind"] == "train"
    assert last["nll"] < first["loss"]
    summary = json.loads((folder / "run/summary.json").read_text())
    assert measured(capsys, "run") == pytest.approx(summary["test"]["nll"])
    # The configuration alone repeats the run, in a process that knows nothing of it.
    assert done_anew(["train", "run/config.yaml", "--output=again", "--quiet"]) == 0
    first_weights, second = (load_file(folder / name / STUDENT) for name in ("run", "again"))
    assert all(torch.equal(first_weights[key], second[key]) for key in first_weights)


def test_a_registered_model_and_an_own_teacher_everywhere(folder: Path, tiny: Sequence[str]) -> None:
    done("train", *tiny, "--student.name=own_nets:Net", "--output=teacher")
    learn = ["--teacher.name=own_nets:Net", "--teacher.weights=teacher", "--runs=.", "--data.views=1"]
    net = ["--student.name=own_net", "--import", "own_nets"]
    for command in (["distill", "--output=run"], ["store-teacher"]):
        done(*command, *tiny, "--method=disk", *learn, *net)
    assert yaml.safe_load((folder / "run/config.yaml").read_text())["import"] == ["own_nets"]
    for command in (["evaluate", "run"], ["report", "run"], ["inspect", "run"], ["export", "run"]):
        done(*command, "--import=own_nets")
    assert (folder / "run/export/own_net.safetensors").is_file()
    done("export", "teacher", "--format=torch.export")
    assert (folder / "teacher/export/Net.pt2").is_file()


def test_a_comparisons_processes_import_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"train": {"epochs": 1, "warmup_epochs": 0, "batch_size": 24}, "data": {"limit_train": 120}}
    (folder / "t.yaml").write_text(
        yaml.safe_dump(settings | {"student": {"name": "own_net"}, "method": {"name": "ce"}})
    )
    rows = {
        "listed": {"import": ["own_nets"], "student": {"name": "own_net"}},
        "plain": {"import": "own_nets", "student": {"name": "own_nets:fixed"}},
        "given": {"student": {"name": "own_net"}},
    }
    teacher = {"name": "own_net", "weights": "recipe:t.yaml"}
    for name, row in rows.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(settings | {"teacher": teacher, "method": {"name": "kd"}} | row)
        )
    files = [f"{name}.yaml" for name in rows]
    capsys.readouterr()
    done("compare", *files, "--import", "own_nets", "--seeds=1", "--report=false")
    assert "failed" not in capsys.readouterr().out
    made = {path.parts[1] for path in (folder / "runs").rglob(STUDENT) for path in [path.relative_to(folder)]}
    assert made == {"t", *rows}


def test_the_own_module_is_named_in_a_recipe_or_not_known(
    folder: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = "no model is named 'own_netz'; nearest: .*own: my_module:make, or --import the module that registers it"
    refused(capsys, message, "train", *tiny, "--import=own_nets", "--student.name=own_netz", "--output=none")
    (folder / "r.yaml").write_text("import: 3\n")
    refused(capsys, "import must be a module or a list of modules, not 3", "train", "r.yaml")
    for arguments in (["--import"], ["--import="], ["--import", "--quiet"]):
        refused(capsys, "--import needs a module of yours: --import my_module", "train", *arguments)
    for name in ("nowhere", "[own_nets, nowhere]"):
        refused(capsys, r"cannot import 'nowhere' \(No module named 'nowhere'\)", "train", f"--import={name}")
    (folder / "breaking.py").write_text("1 / 0\n")
    for command in (["train"], ["evaluate", "run"], ["report", "run"], ["inspect", "run"]):
        refused(capsys, r"cannot import 'breaking' \(division by zero\)", *command, "--import=breaking")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student.name=own_nets:nothing"], r"no model 'own_nets:nothing' \(.*has no attribute 'nothing'\)"),
        (["--student.name=own_nets:net"], "own_nets:net is a Net; give a function or class that makes the model"),
        (["--student.name=own_nets:text"], "own_nets:text gives a str, not a torch.nn.Module; correct it"),
        (["--student.name=own_nets:failing"], r"failing cannot be called with .* \(KeyError: 'no such\\nthing'\)"),
        (["--student.name=own_nets:Net", "--student.options={depth: 3}"], "unexpected keyword argument 'depth'"),
        (["--student.name=own_nets:odd"], "Net does not take an image of shape .* has no attribute 'nothing'"),
        (["--student.name=own_nets:Net", "--student.pretrained=true"], "it takes no 'pretrained'; give weights"),
        (["--student.name=own_nets:Net", "--student.options={mean: [0.5]}"], "must give mean and std, or neither"),
        (["--student.options={mean: 0.5, std: [1]}"], "must be two lists of 1 numbers, one a channel, not mean=0.5"),
        (["--student.options={mean: [0.5, 0.5], std: [1, 1]}"], r"two lists of 1 numbers, one a channel"),
        (["--student.options={mean: [0.5], std: [0]}"], r"mean must be finite and std above 0, not .*std=\[0\]"),
    ],
)
def test_mistakes_in_a_model_are_one_line(
    options: list[str], message: str, folder: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, message, "train", *tiny, *options, "--output=none")
    assert not (folder / "none").exists()


def test_what_a_maker_is_called_with(folder: Path) -> None:
    assert create_model("own_nets:fixed", num_classes=7, in_chans=1)[-1].out_features == 10
    assert create_model("own_nets:anything", num_classes=7, in_chans=1, width=3)[0].out_channels == 3
    assert create_model("own_nets:trained", num_classes=7, in_chans=1, pretrained=True)[-1].out_features == 7
    with pytest.raises(ModelError, match="AssertionError"):
        create_model("own_nets:trained", num_classes=7)
    with pytest.raises(ConfigError, match=r"no model ':make' \(Empty module name\)"):
        create_model(":make", num_classes=7)


def test_a_trained_model_that_does_not_say_its_normalisation_is_refused(
    folder: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(create_model("own_nets:Net", num_classes=10, in_chans=1).state_dict(), "mine.pth")
    unknown = r"neither own_nets:Net nor its weights record how .*; give --{}.options '{{mean: \[...\], std: \[...\]}}'"
    weights = ["--{}.name=own_nets:Net", "--{}.weights=mine.pth"]
    for command, part in (("distill", "teacher"), ("train", "student")):
        given = [option.format(part) for option in weights]
        refused(capsys, unknown.format(part), command, *tiny, *given, "--output=none")
    refused(capsys, unknown.format("model"), "evaluate", "mine.pth", "--model.name=own_nets:Net")
    pretrained = ["--teacher.name=own_nets:trained", "--teacher.pretrained=true", "--runs=."]
    refused(capsys, "neither own_nets:trained nor its weights", "distill", *tiny, *pretrained, "--output=none")
    told = '{"mean": [0.2], "std": [0.4]}'
    done("distill", *tiny, *pretrained, f"--teacher.options={told}", "--output=run")
    values = [measured(capsys, "mine.pth", "--model.name=own_nets:Net", f"--model.options={t}") for t in (told, told)]
    other = measured(capsys, "mine.pth", "--model.name=own_nets:Net", "--model.options={mean: [0.9], std: [0.1]}")
    assert values[0] == values[1] != other


def write(path: Path, **about: Any) -> Path:
    """A file of weights of own_nets:Net that says `about` of itself."""
    digits = {"in_chans": 1, "image_size": 8, "classes": list("0123456789"), "mean": [0.5], "std": [0.5]}
    model = create_model("own_nets:Net", num_classes=10, in_chans=1)
    said = {"model": "own_nets:Net", "options": {}, **digits, **about}
    save_state_dict(path, model.state_dict(), {METADATA: json.dumps(said)})
    for name in ("own_nets", "imported"):
        sys.modules.pop(name, None)
    Path("imported").unlink()
    return path


def test_a_file_of_weights_imports_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(folder / "w.safetensors"))
    message = "is for own_nets:Net. A module is not imported only because a file names it; .*--import own_nets"
    for command in (["evaluate", path], ["export", path]):
        refused(capsys, message, *command)
        refused(capsys, message, *command, "--import=json")
        assert not Path("imported").exists()
    done("export", path, "--import=own_nets:Net", "--output=a.safetensors")
    for named in ("--import=own_nets:Net", "--import=own_nets", "--model.name=own_nets:Net"):
        done("evaluate", path, named)
    # What the module itself imported is not its own.
    stolen = str(write(folder / "s.safetensors", model="own_nets:copy", options={"src": path, "dst": "stolen"}))
    refused(capsys, "is for own_nets:copy", "evaluate", stolen, "--import=own_nets")
    assert not Path("stolen").exists()


def test_nor_does_its_hint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = {"name": "cifar_resnet10_xxs", "options": {}}
    for hint in (
        {"name": "own_nets:Net", "options": {}, "teacher": teacher},
        {"name": "simkd", "options": {}, "teacher": teacher | {"name": "own_nets:Net"}},
    ):
        path = str(write(folder / "w.safetensors", model="cifar_resnet10_xxxs", hint=hint))
        for command in (["evaluate", path], ["evaluate", path, "--model.name=cifar_resnet10_xxxs"], ["export", path]):
            refused(capsys, "is for own_nets:Net", *command)
        assert not Path("imported").exists()


def test_the_run_is_trusted_and_a_file_in_it_is_not(
    folder: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    done("train", *tiny, "--import=own_nets", "--student.name=own_nets:Net", "--output=run")
    refused(capsys, "is for own_nets:Net", "evaluate", f"run/{STUDENT}")
    refused(capsys, "is for own_nets:Net", "export", f"run/{STUDENT}")
    for command in (["evaluate", "run"], ["export", "run"], ["report", "run"]):
        done(*command)
    # Weights that another put into the run do not widen what it names.
    hint = {"name": "other:Hint", "options": {}, "teacher": {"name": "cifar_resnet10_xxs", "options": {}}}
    (folder / "other.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    write(folder / "run" / STUDENT, hint=hint)
    for command in (["evaluate", "run"], ["export", "run", "--overwrite"]):
        refused(capsys, "is for other:Hint", *command)
    done("report", "run")
    assert "is for other:Hint" in (folder / "run/report.html").read_text()
    assert "other" not in sys.modules
