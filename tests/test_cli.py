"""A user's mistakes: one clear line, exit code 2, before any training, nothing lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from disk_kd.arguments import parse_run, parse_settings
from disk_kd.bench import BenchSettings
from disk_kd.build import STUDENT
from disk_kd.cli import COMMANDS, main
from disk_kd.comparison.experiment import is_experiment
from disk_kd.config import RunConfig
from disk_kd.files import save_tensors
from disk_kd.hints import HINTS
from disk_kd.models import create_model
from disk_kd.models.about import METADATA
from disk_kd.tasks import METHODS
from disk_kd_command import COMMON
from processes import Command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Sequence[str]) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *tiny, f"--output={folder}"]) == 0
    return folder


def says(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error


def test_a_run_leaves_all_that_is_promised(run: Path) -> None:
    files = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last", "best", "student.safetensors", "summary.json"} <= files
    summary = json.loads((run / "summary.json").read_text())
    assert {"top1", "top5", "nll", "ece"} <= summary["test"].keys()
    assert summary["student_epochs"] == 2
    for name in ("images_per_s", "peak_memory_bytes", "versions", "hardware", "parameters", "multiply_adds"):
        assert summary[name]


def test_config_alone_repeats_the_run(run: Path, tmp_path: Path) -> None:
    assert main(["distill", str(run / "config.yaml"), "--quiet", f"--output={tmp_path / 'again'}"]) == 0
    for name in ("metrics.jsonl", STUDENT):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_evaluate_agrees_with_the_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for what in ([str(run)], [str(run / STUDENT), "--data.name=digits"]):
        assert main(["evaluate", *what, "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured == pytest.approx({name: summary["test"][name] for name in measured})
    assert summary["test"]["nll_scaled"] <= summary["test"]["nll"] + 0.05


def test_released_checkpoint_is_converted_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    weights = create_model("cifar_resnet10_xxs", num_classes=10, in_chans=1).state_dict()
    released = {"base_state_dict": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(released, tmp_path / "model.pth.tar")
    assert main(["convert", str(tmp_path / "model.pth.tar")]) == 0
    model = ["--model.name=cifar_resnet10_xxs", "--data.name=digits", "--json"]
    capsys.readouterr()
    measured = []
    for file in ("model.pth.tar", "model.safetensors"):
        assert main(["evaluate", str(tmp_path / file), *model]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert measured[0] == measured[1]
    says(capsys, ["evaluate", str(tmp_path / "model.safetensors"), "--data.name=digits"], "give --model.name")
    says(capsys, ["convert", str(tmp_path / "model.pth.tar")], "exists")


def test_evaluate_takes_the_data_of_the_run_wherever_the_options_stand(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []
    for arguments in (
        ["--split", "train", str(run)],
        [str(run), "--split=train"],
        [str(run / STUDENT), "--split=train"],
    ):
        assert main(["evaluate", *arguments, "--json"]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert measured[0] == measured[1] == measured[2]
    assert measured[0]["samples"] == 120


def test_a_start_from_a_run_that_started_from_a_file(run: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", load_file(run / STUDENT))
    (tmp_path / "summary.json").write_text("{}")  # some other program's
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *tiny, f"--student.weights={tmp_path / 'w.safetensors'}", f"--output={first}"]) == 0
    assert main(["train", *tiny, f"--student.weights={first}", f"--output={second}"]) == 0
    known = main(["train", *tiny, f"--student.weights={run}", f"--output={tmp_path / 'known'}"])
    assert known == 0
    epochs = [
        json.loads((tmp_path / name / "summary.json").read_text())["start_epochs"] for name in ("second", "known")
    ]
    assert epochs == [None, 2]


def test_a_run_directory_in_use_is_left_alone(
    run: Path, tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text((run / "config.yaml").read_text())
    with FileLock(tmp_path / "run" / "last" / "lock"):
        says(capsys, ["train", *tiny, f"--output={tmp_path / 'run'}", "--resume"], "another process works in")
    assert main(["train", *tiny, f"--output={tmp_path / 'run'}", "--resume"]) == 0


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("models", "cifar_resnet10_s"),
        ("methods", "disk"),
        ("hints", "reviewkd"),
        ("datasets", "cifar100"),
        ("recipes", "digits/disk"),
    ],
)
def test_list(what: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    assert found in capsys.readouterr().out


@pytest.mark.parametrize(("what", "classes"), [("methods", METHODS), ("hints", HINTS)])
def test_what_is_listed_says_what_it_is(
    what: str, classes: dict[str, type], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", what]) == 0
    lines = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    for name, kind in classes.items():
        words = (kind.__doc__ or "").split()
        assert any(re.match(rf"{name} │ {re.escape(' '.join(words[:3]))}", line) for line in lines), name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # argparse's way to end
        assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"disk-kd {name}" in text
    assert text.count("\n") <= 40


def all_options(name: str, *more: str) -> str:
    """What COMMAND --help-all shows, in one line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([name, *more, "--help-all"]) == 0
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("name", sorted(COMMON))
def test_all_options_are_shown_in_sections_and_words(name: str) -> None:
    text = all_options(name)
    assert not re.search(r"<class|typing\.|Literal|Union|Optional|NoneType", text)
    if name in ("train", "distill", "store-teacher"):
        assert all(f" {title}: --{title}." in text for title in ("data", "student", "method", "hint", "train"))
        assert "(a whole number or null; default: null)" in text
        assert "(auto, true or false; default: auto)" in text


def test_a_method_named_beside_help_all_shows_its_options() -> None:
    text = all_options("distill", "--method=disk")
    assert "--method.top_k" in text
    assert "(a number, a mapping of start, end, period, start_decay or null; default: null)" in text
    assert "--method.top_k" not in all_options("distill")


@pytest.mark.parametrize("name", sorted(COMMON))
def test_the_common_options_are_real_and_have_their_defaults(name: str) -> None:
    text = all_options(name)
    for option, about in COMMON[name]:
        flag = option.split()[0]
        if not flag.startswith("--"):
            continue
        flag = {"--method": "--method.name", "--views": "--data.views"}.get(flag, flag)
        assert f" {flag} " in text, flag
        told = re.search(r"\(default: (.*?)\)$", about)
        if told is not None:
            real = re.search(rf".* {re.escape(flag)} .*?default: (.*?)\)?( |$)", text)
            assert real is not None
            assert real[1].replace("'", "").rstrip(")") == told[1].rstrip(")"), flag


def test_help_of_a_command_with_many_options_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys; sys.argv = ['disk-kd', 'distill', '--method', 'disk', '--help']; import disk_kd_command;"
        "disk_kd_command.main(); sys.exit('torch' in sys.modules or 'disk_kd' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output=~/run"], lambda config: config.output),
        (["--runs=~/runs"], lambda config: config.runs),
        (["--data.name=folder", "--data.root=~/photos"], lambda config: config.data.root),
        (["--student.weights=~/w.pth"], lambda config: Path(config.student.weights)),
        (["--teacher.weights=~/w.pth"], lambda config: Path(config.teacher.weights)),
    ],
)
def test_a_tilde_is_the_home_in_every_path_of_a_run(
    arguments: list[str], named: Callable[[RunConfig], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named(parse_run("distill", arguments)).parent == tmp_path


def test_a_tilde_is_the_home_in_settings_recipes_and_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_settings(BenchSettings, ["--output=~/bench"]).output == tmp_path / "bench"
    (tmp_path / "mine.yaml").write_text("rows: {a: {recipe: digits/ce}}")
    assert is_experiment("~/mine.yaml")
    (tmp_path / "recipe.yaml").write_text("base: ~/base.yaml")
    (tmp_path / "base.yaml").write_text("train: {epochs: 7}")
    assert parse_run("train", ["~/recipe.yaml"]).train.epochs == 7


def test_print_config_is_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["distill", "digits/disk", "--method.budget={start: 0.3, end: 0.1, period: 5}", "--print_config"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["method"]["budget"] == {"start": 0.3, "end": 0.1, "period": 5.0, "start_decay": 1.0}
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["distill", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == text


def test_without_a_named_method_distilling_is_kd(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--print_config"]) == 0
    method = yaml.safe_load(capsys.readouterr().out)["method"]
    assert (method["name"], method["temperature"]) == ("kd", 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil"], "unknown command 'distil'; nearest: distill"),
        (["train", "--student.name=cifar_resnet10_z"], "cifar_resnet10_"),
        (["train", "--student.name=resnet5O"], "resnet50"),
        (["train", "digits/teachr"], "no recipe 'digits/teachr'.*digits/teacher"),
        (["train", "--train.learning_rate=1"], r"unknown option train.learning_rate; nearest: "),
        (
            ["distill", "--hint.weight=2"],
            "--hint.weight is an option of a feature method; give --hint NAME too: fitnet",
        ),
        (
            ["evaluate", "cifar_resnet10_s", "--model.options={a: 1}"],
            "model.name is missing: give text",
        ),
        (["train", "--train.epochs=many"], "^disk-kd: train.epochs must be a whole number, not 'many'"),
        (["train", "--train.lr="], "train.lr must be a number, not ''"),
        (["train", "--data.views="], "data.views must be a whole number or null, not ''"),
        (["train", "--train.lr"], "--train.lr needs a value: --train.lr VALUE"),
        (["train", "--lr=0.1"], "unknown option lr; nearest: train.lr"),
        (["train", "--epochs", "3"], "unknown option epochs; nearest: train.epochs"),
        (["train", "-train.lr=0.1"], "options begin with two dashes: give --train.lr=0.1"),
        (["train", "--teacher.name=resnet18"], "teacher.name needs a method with a teacher; give disk-kd distill"),
        (["bench", "--student.name=resnet18"], "student must be text, not "),
        (["compare", "digits/ce", "--runs=/dev/null"], "the folder of runs /dev/null is a file; give another --runs"),
        (["train", "--no-resume"], "--no-resume needs a value"),
        (["train", "--resume=never"], "--resume takes no value, not 'never'"),
        (["train", "--train.milestones=5"], r"train.milestones must be a list of whole numbers, not 5"),
        (["train", "--student.options=wide"], r"student.options must be a mapping, not 'wide'"),
        (["train", "--train.schedule=cosin"], "train.schedule must be one of cosine, .*, not 'cosin'"),
        (["train", "--train=no.yaml"], "train must be a mapping of options, not 'no.yaml'"),
        (["train", "--output="], "--output is empty; give a path"),
        (["train", "--output=/dev/null/x"], "cannot make the run directory /dev/null/x .*; give another --output"),
        (["distill", "digits/kd", "digits/ce"], "one recipe at a time, not digits/kd and digits/ce"),
        (["distill", "."], "no recipe '.': .* `disk-kd list recipes`"),
        (["report", "run", "--out=x"], "unknown option --out; nearest: output"),
        (["compare", "digits/ce", "--seeds=x"], "argument --seeds: must be a whole number, not 'x'"),
        (["--verison"], "unknown command '--verison'.*disk-kd --help lists them"),
        (["evaluate"], "evaluate needs exactly one model: a run directory"),
        (["train", "--train.epochs=1000001"], "train.epochs must be at most a million, not 1000001"),
        (
            ["distill", "--method=disk", "--method.budget={end: 0.1}"],
            r"method.budget.start is missing: give a number",
        ),
        (["train", "--train.epochs=0"], "train.epochs must be at least 1, not 0"),
        (["train", "--train.lr=-1"], "train.lr must be positive"),
        (["train", "--train.lr=.inf"], "train.lr must be positive and finite, not inf"),
        (["train", "--train.weight_decay=.inf"], "train.weight_decay must be finite, not inf"),
        (["train", "--data.mix.mixup=.inf"], "data.mix.mixup is a finite alpha of at least 0, got inf"),
        (["train", "--data.mix.cutmix=.nan"], "data.mix.cutmix must be a number, not nan"),
        (["train", "--student.options={num_classes: 3}"], "must be keywords of its own, not 'num_classes'"),
        (["distill", "--teacher.image_size=0"], "teacher.image_size must be from 1 to 10,000, or null, not 0"),
        (["train", "--train.seed=99999999999999999999"], "train.seed must be below"),
        (["train", "--student.name=vit_tiny_patch16_224"], "vit_tiny_patch16_224|VisionTransformer|image|size"),
        (["train", "--train.batch_size=1"], "batch normalisation needs at least 2 images at a time, not 1"),
        (
            ["distill", "--method=disk", "--method.budget={start: a}"],
            "method.budget.end is missing: give a number",
        ),
        (
            ["distill", "--hint=at", "--hint.student_layers=last"],
            "hint.student_layers must be a list or null, not 'last'",
        ),
        (["distill", "--train.compile=maybe"], "train.compile must be auto, true or false, not 'maybe'"),
        (["train", "--train.optimizer=sdg"], "unknown optimizer 'sdg'; nearest: sgd"),
        (["train", "--train.precision=int8"], "train.precision"),
        (
            ["train", "--student.name=cifar_mobilenetv2", "--data.image_size=32", "--train.grad_checkpointing=true"],
            "StagedNet cannot recompute its activations; give --train.grad_checkpointing false",
        ),
        (["train", "--data.root=photos"], "folder: there is no folder data.root .*photos"),
        (["train", "--data.image_size=3000000000"], "data.image_size is too large: 3000000000"),
        (["train", "--data.image_size=20000"], "data.image_size must be from 1 to 10,000, or null, not 20000"),
        (["train", "--data.augment.crop_padding=100000000000000000000"], "data.augment.crop_padding is too large"),
        (["store-teacher", "--views=1000001"], "data.views must be from 1 to 1,000,000, or null, not 1000001"),
        (["train", "--train.checkpoint_every_s=.nan"], "train.checkpoint_every_s must be a number, not nan"),
        (["train", "--train.device=hpu"], "no device 'hpu' here"),
        (["train", "--train.device=meta"], r"no device 'meta' here \(it holds no numbers\); give cpu"),
        (["train", "--train.optimizer=adahessian"], "adahessian needs second derivatives"),
        (
            ["train", "--student.options={features_only: true}", "--student.name=resnet18"],
            r"FeatureListNet gives \(2, 64, 4, 4\)",
        ),
        (["train", "--train.device=cuda:77"], "no device 'cuda:77' here"),
        (["train", "--data.name=cifar99"], "cifar100"),
        (["train", "--data.name=cifar100", "--data.root=/nowhere"], "nowhere"),
        (["train", "--data.validation=1.5"], "validation"),
        (["train", "--method=kd"], "disk-kd train is for cross-entropy"),
        (["distill", "--method=dsk"], "unknown method 'dsk'; give one of ce, kd, .*, or your own: my_module:My"),
        (["distill", "--hint=spp"], "unknown hint 'spp'; give one of fitnet, at, .*, or your own: my_module:My"),
        (["distill", "--hint"], "--hint needs a name: one of fitnet, at, .*, or your own: my_module:My"),
        (["distill", "--hint", "--train.epochs=2"], "--hint needs a name: one of fitnet"),
        (["distill", "--method"], "--method needs a name: one of ce, kd, .*, or your own"),
        (["distill", "--method="], "--method needs a name: one of ce, kd"),
        (["distill", "--method=kd"], "the teacher has no weights"),
        (["distill", "--method=:Foo"], "no method ':Foo' .*give a module and a name in it"),
        (["distill", "--method=.m:Foo"], "no method '.m:Foo' .*give a module and a name in it"),
        (["distill", "--method.top_k=5"], "kd has no option method.top_k; these methods have it: disk$"),
        (["distill", "digits/kd", "--runs=/nowhere"], "no teacher weights at .*disk-kd train digits/teacher"),
        (["evaluate", "/nowhere"], "no weights at"),
        (["compare"], "RECIPE"),
        (["compare", "digits/none"], "no recipe 'digits/none'"),
        (["compare", "digits/ce", "--seeds=0"], "must be from 1 to 1,000,000, not 0"),
        (["compare", "digits/ce", "--seeds=999999999"], "must be from 1 to 1,000,000, not 999999999"),
        (["compare", "digits/ce", "--seeds=1001"], "seeds must be at most 1,000, not 1001"),
        (["compare", "--train.epochs", "1", "digits/none"], "no recipe 'digits/none'"),
        (["compare", "digits/ce", "--train.seed=3"], "a comparison gives each run its train.seed"),
        (["convert", "/nowhere.pth.tar"], "nowhere"),
        (["convert", "."], "no file of weights at .; give the file to convert"),
        (["list", "recipes", "xyzzy"], "no name of the recipes contains 'xyzzy'; disk-kd list recipes shows all"),
        (["list", "model"], "models"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    says(capsys, arguments, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method.temperature=0", "--method=kd"], "temperature must be a positive number, not 0"),
        (["--method=disk", "--method.top_k=-1"], "top_k must be at least 0, not -1"),
        (["--method=disk", "--method.helper=exactly"], "unknown helper 'exactly'.*nearest: exact"),
        (["--teacher.name=cifar_resnet10_xs"], "does not fit ResNet: .*; these weights are for cifar_resnet10_xxxs"),
        (["--method=disk", "--method.helper=2"], "constant helper must be from 0 to 1"),
        (["--hint=sp", "--hint.student_layer=layer9"], "the student's layers: ResNet has no output or module 'layer9'"),
        (["--hint=sp", "--hint.teacher_layer=layer9"], "the teacher's layers: ResNet has no output or module 'layer9'"),
        (["--hint=fitnet", "--hint.teacher_layer=pooled"], "the teacher's layers: pooled of ResNet must be a map"),
        (["--hint=at", "--hint.student_layers=[map]"], "hint.student_layers and hint.teacher_layers must be as many"),
    ],
)
def test_mistakes_about_the_method(
    options: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    learn = [
        "distill",
        "--teacher.name=cifar_resnet10_xxxs",
        f"--teacher.weights={run}",
        f"--output={tmp_path / 'run'}",
    ]
    says(capsys, [*learn, *options], message)
    assert list(tmp_path.iterdir()) == []


def test_teacher_of_other_classes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    teacher = create_model("cifar_resnet10_xxxs", num_classes=7, in_chans=1)
    save_tensors(tmp_path / "t.safetensors", teacher.state_dict())
    learn = ["distill", "--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={tmp_path / 't.safetensors'}"]
    says(capsys, [*learn, f"--output={tmp_path / 'run'}"], "7 classes, the model 10")
    assert not (tmp_path / "run").exists()


def test_teacher_of_the_same_classes_in_another_order(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = load_file(run / STUDENT)
    save_tensors(
        tmp_path / "t.safetensors", weights, {METADATA: json.dumps({"classes": [str(n) for n in reversed(range(10))]})}
    )
    learn = ["distill", "--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={tmp_path / 't.safetensors'}"]
    says(capsys, [*learn, f"--output={tmp_path / 'run'}"], "'0'.*'9'|'9'.*'0'")


def test_recipe_files_of_any_kind_of_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in (
        ("train: {epochs: 2", "cannot read .*mine.yaml"),
        ("- a\n- b\n", "must be a mapping"),
        ("train: {epocs: 2}", "unknown option train.epocs; nearest: train.epochs"),
        ("trian: {epochs: 2}", "trian"),
        ("method: kd", "'method' .* must hold a mapping"),
        ("train: {epochs: 2}\ntrain: {lr: 0.1}", "key 'train' occurs twice, again in line 2 of .*mine.yaml"),
        ("student: {name: null}", "student.name must be text, not null; leave it out for the default"),
        ("train: &all {epochs: *all}", "line 1 of .*mine.yaml holds itself"),
        ("base: mine.yaml", "is its own base"),
        ("train: {epochs: null}", "train.epochs must be a whole number, not null; leave it out for the default"),
        ("train: {1: 2}", "the name of an option must be text, not 1"),
        ("optimizer: sgd", "unknown option optimizer; nearest: train.optimizer"),
        ("train: {lr: [1]}", r"train.lr must be a number, not \[1\]"),
        ("base: yours.yaml", "cannot read .*yours.yaml"),
        ("train: 3", "train"),
        ("quiet: maybe", "unknown option quiet"),
        ('base: "a\\0b"', "holds a NUL character"),
        ('output: "a\\0b"', "holds a NUL character"),
        ("train: {epochs: 2020-13-45}", "a value is not what it looks like"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        says(capsys, ["distill", str(tmp_path / "mine.yaml")], message)


def test_corrupt_and_malicious_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    (tmp_path / "corrupt.safetensors").write_bytes(b"\x00" * 100)
    torch.save({"state_dict": {"a": torch.ones(1)}, "evil": Evil()}, tmp_path / "evil.pth")
    save_tensors(tmp_path / "mute.safetensors", {"a": torch.ones(1)}, {METADATA: "[1]"})
    lost = create_model("cifar_resnet10_s", num_classes=10, in_chans=1).state_dict()
    save_tensors(tmp_path / "lost.safetensors", lost | {"fc.bias": torch.full((10,), torch.nan)})
    for name in ("corrupt.safetensors", "evil.pth", "mute.safetensors", "lost.safetensors"):
        options = ["--model.name=cifar_resnet10_s", "--data.name=digits"]
        says(capsys, ["evaluate", str(tmp_path / name), *options], name)
    says(capsys, ["convert", str(tmp_path / "evil.pth")], "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_run_directory_that_exists(run: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "summary.json").read_bytes()
    says(capsys, ["train", *tiny, f"--output={run}"], "exists; resume it with --resume")
    assert (run / "summary.json").read_bytes() == before


def test_resume_with_other_options(tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"--output={tmp_path / 'run'}"
    assert main(["train", *tiny, output]) == 0
    (tmp_path / "run" / "summary.json").unlink()
    says(capsys, ["train", *tiny, output, "--resume", "--train.lr=0.05"], "started with another train.lr")
    # As if an earlier version had written it, which had no such option: only its default is the same run.
    config = tmp_path / "run" / "config.yaml"
    begun = yaml.safe_load(config.read_text())
    for part, option in (("train", "clip_grad"), ("data", "timm"), ("data", "mix")):
        del begun[part][option]
    del begun["data"]["augment"]["cutout"], begun["hint"]
    config.write_text(yaml.safe_dump(begun))
    says(capsys, ["train", *tiny, output, "--resume", "--train.clip_grad=1"], "started with another train.clip_grad")
    assert main(["train", *tiny, output, "--resume"]) == 0


def test_full_disk_leaves_what_was_written(tiny: Sequence[str], tmp_path: Path) -> None:
    """Files may not grow past 40 kB, as a full disk would have it: the checkpoint cannot be written."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    command = Command(["train", *tiny, f"--output={tmp_path / 'run'}"], before=small_files)
    assert command.wait() == 2, command.said()
    assert [line for line in command.errors.splitlines() if line.startswith("disk-kd: ")] == [command.errors.strip()]
    assert "files written before are complete" in command.errors
    assert (tmp_path / "run" / "config.yaml").exists()
    assert list(tmp_path.rglob("*.tmp")) == []


def test_no_space_is_seen_before_training(
    tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(10**9, 10**9, 10**6))
    says(capsys, ["train", *tiny, f"--output={tmp_path / 'run'}"], "MiB free, the run needs .* MiB")
    assert not (tmp_path / "run").exists()


def test_more_views_than_the_disk_holds_are_refused(
    run: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disk_kd.storing._free_bytes", lambda folder: 1000)
    store = ["store-teacher", *tiny, "--method=kd", "--teacher.name=cifar_resnet10_xxxs", f"--teacher.weights={run}"]
    says(
        capsys,
        [*store, "--views=3", f"--runs={tmp_path / 'runs'}"],
        "3 views of the teacher's outputs need .* GiB",
    )
    assert not (tmp_path / "runs").exists()


def test_a_milestone_after_the_last_pass_is_told(
    tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option for option in tiny if option != "--quiet"]
    steps = ["--train.schedule=multistep", "--train.milestones=[1,2]", "--train.epochs=2"]
    assert main(["train", *options, *steps, f"--output={tmp_path / 'run'}"]) == 0
    assert "does not fall at train.milestones [2]: the run has 2 epochs" in capsys.readouterr().out


class _Usage:
    def __init__(self, total: int, used: int, free: int) -> None:
        self.total, self.used, self.free = total, used, free


def test_divergence_is_said(tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(
        capsys,
        ["train", *tiny, "--train.lr=1e12", f"--output={tmp_path / 'run'}"],
        "the loss is no longer finite .*lower train.lr",
    )


def test_a_checkpoint_never_holds_what_is_not_finite(
    tiny: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    often = ["--train.log_every=5", "--train.checkpoint_every_s=0", "--train.lr=1e3", "--train.epochs=20"]
    says(capsys, ["train", *tiny, *often, f"--output={tmp_path / 'run'}"], "no longer finite after .*lower train.lr")
    saved = load_file(tmp_path / "run" / "last" / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values() if tensor.is_floating_point())
