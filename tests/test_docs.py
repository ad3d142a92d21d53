"""Every code block and command of README.md and docs/ runs, or is read by the parser that would run it.

A page is a story: its blocks run in order in one folder, which holds a finished run, and in one namespace. HTML
comments, which no reader sees, say what a block needs:

    <!-- run: OPTIONS -->    the commands of the next block run, with OPTIONS after each; else they are only parsed
    <!-- setup: CODE -->     Python to execute first

A block after a paragraph that ends with a file's name in code and a colon is written to that file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from markdown_it.token import Token
from torch.distributed.run import get_args_parser

import disk_kd.bench
from disk_kd.cli import main
from disk_kd.commands import COMMANDS, EVERY_OPTION
from disk_kd.commands.parsing import Parser
from disk_kd.hints import HINTS
from disk_kd.recipe import find_recipe, list_recipes, load_recipe
from disk_kd.tasks import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = "runs/demo/digits/kd/seed0"
PLACEHOLDERS = {
    "RUN": RUN,
    "RUNS": "runs",
    "RECIPE": "digits/kd",
    "EXPERIMENT.yaml": "experiment.yaml",
    "CHECKPOINT.pth.tar": "checkpoint.pth.tar",
    "WEIGHTS": f"{RUN}/student.safetensors",
    "COMMAND": "train",
    "S": "cifar_resnet10_xxxs",
    "T": "cifar_resnet10_s",
    "HOST": "localhost",
    "FILE": "file.html",
    "N": "2",
}
"""What a page leaves to its reader, and what takes its place here; DATA, a folder, stays as it is."""
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
RUN_ELSEWHERE = {"export.md"}
"""Pages whose blocks `test_export.py` runs, to look at the files that they make; here their commands are parsed."""
FOREIGN = {"pip", "python", "hf", "git", "cd", "tensorboard"}
"""Programs that are not this project's to check."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its language, "" for an indented one, and what the comments before it say."""

    language: str
    text: str
    file: str | None = None
    options: str | None = None
    setup: str = ""


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    before, options, setup = "", None, ""
    for token in tokens(page):
        if token.type == "inline":
            before = token.content
        elif token.type == "html_block" and (found := re.match(r"<!-- run:(.*?)-->", token.content, flags=re.DOTALL)):
            options = found[1].strip()
        elif token.type == "html_block" and (found := re.match(r"<!-- setup:(.*?)-->", token.content, flags=re.DOTALL)):
            setup += found[1].strip() + "\n"
        elif token.type in ("fence", "code_block"):
            named = re.search(r"`([\w.]+)`:$", before)
            yield Block(token.info, token.content, named[1] if named else None, options, setup)
            before, options, setup = "", None, ""


def inline_code(page: Path) -> list[str]:
    children = itertools.chain.from_iterable(token.children or () for token in tokens(page))
    return [child.content for child in children if child.type == "code_inline"]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block, as a shell would see them, with placeholders filled and alternatives spelt out."""
    text = re.sub(r"\$\([^)]*\)|\$\w+", "1", text.replace("\\\n", " "))
    for line in text.splitlines():
        words = [word.removesuffix("...") for word in shlex.split(line, comments=True) if word != "…"]
        words = [
            re.sub(r"(?<![\w/.-])[A-Z][A-Za-z.]*(?![\w-])", lambda m: PLACEHOLDERS.get(m[0], m[0]), w) for w in words
        ]
        words = list(itertools.chain.from_iterable(map(braces, words)))
        yield from (list(choice) for choice in itertools.product(*(word.split("|") for word in words)) if choice)


def braces(word: str) -> list[str]:
    """a{b,c} as a shell expands it; YAML in braces, with its colons, is left alone."""
    found = re.search(r"\{([\w,./-]+)\}", word)
    return [word] if found is None else [word.replace(found[0], part) for part in found[1].split(",")]


class Parsed(BaseException):
    """A command was read to its end, and is not to begin."""


def stop(*_: Any, **__: Any) -> None:
    raise Parsed


def check(command: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Read a command as it would be, up to where its work begins."""
    program, *arguments = command
    if program == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS, f"no such target: {command}"
    elif program == "srun":
        check(arguments, patch)
    elif program == "torchrun":
        found = get_args_parser().parse_args(arguments)
        assert (found.module, found.training_script) == (True, "disk_kd"), command
        check(["disk-kd", *found.training_script_args], patch)
    elif program == "disk-kd":
        check_own(arguments, patch)
    else:
        assert program in FOREIGN, f"unknown program: {command}"


def check_own(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Everything up to the functions below is what the command does before its work."""
    parse = Parser.parse_args
    with patch.context() as patched, contextlib.suppress(Parsed, SystemExit):
        for name in ("execute", "store_teacher", "evaluate_weights", "evaluate_teachers"):
            patched.setattr(f"disk_kd.commands.runs.{name}", stop)
        patched.setattr("disk_kd.commands.comparisons.advise", stop)
        patched.setattr(Parser, "parse_args", lambda *given: stop(parse(*given)))
        patched.setattr("disk_kd.comparison.run._check", lambda configs: None)  # the data of the pages is not here
        patched.setattr("disk_kd.comparison.worker.ProcessPoolExecutor", stop)
        patched.setattr("disk_kd.tuning.tune", stop)
        patched.setattr("disk_kd.probe.probe", stop)
        patched.setattr("disk_kd.zeroshot.zero_shot", stop)
        patched.setattr(disk_kd.bench, "bench", stop)
        patched.setattr("disk_kd.bench.to_accuracy.to_accuracy", stop)
        assert main(arguments) == 0, arguments


def run(command: Sequence[str], options: str) -> None:
    program, *arguments = command
    assert program == "disk-kd", f"only disk-kd runs, not {command}"
    assert main([*arguments, *shlex.split(options)]) == 0, command


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, a student of it, and the files that placeholders stand for."""
    folder = tmp_path_factory.mktemp("workshop")
    tiny = ["--runs", "runs/demo", "--train.epochs=1", "--train.warmup_epochs=0", "--data.views=1", "--quiet"]
    with contextlib.chdir(folder):
        assert main(["train", "digits/teacher", *tiny, "--data.limit_train=100"]) == 0
        assert main(["distill", "digits/kd", *tiny, "--data.limit_train=100"]) == 0
        torch.save({"weight": torch.zeros(2)}, "checkpoint.pth.tar")
        Path("experiment.yaml").write_text("rows: {kd: {recipe: digits/kd}}")
        Path("results").symlink_to(ROOT / "results")
    return folder


@pytest.fixture
def page_folder(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the workshop as working directory; modules that are imported from it are forgotten afterwards."""
    folder = tmp_path / "page"
    shutil.copytree(workshop, folder, symlinks=True)
    monkeypatch.chdir(folder)
    # main() catches the run's own errors; its path is given back too.
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs(page: Path, page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("docs")
    monkeypatch.setitem(sys.modules, "docs", module)  # timm looks a model's module up to register it
    names = vars(module)
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.text)
        exec(block.setup, names)
        elsewhere = page.name in RUN_ELSEWHERE
        if block.language == "python" and elsewhere:
            compile(block.text, page.name, "exec")
        elif block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
        elif block.language in ("", "bash", "console"):
            for command in commands(block.text):
                if block.options is None or elsewhere:
                    check(command, monkeypatch)
                else:
                    run(command, block.options)
        else:
            assert block.language in ("yaml", "text"), f"a block of {block.language}: is it tested?"
    for code in inline_code(page):
        for command in commands(code) if re.match(r"(disk-kd|make|torchrun .*disk_kd) ", code) else ():
            if not is_part(command):
                check(command, monkeypatch)


def is_part(command: Sequence[str]) -> bool:
    """Whether inline code names a command, perhaps with options, and leaves out what it is to be done to."""
    program, name, *rest = command
    alone = not rest or (name == "compare" and rest[0].startswith("--"))
    return program == "disk-kd" and name in COMMANDS and alone


def test_recipes_and_options_that_pages_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    recipes, options = set(list_recipes()), known_options(capsys)
    families = "|".join({name.split("/")[0] for name in recipes})
    seen = set()
    for page in PAGES:
        for code in inline_code(page):
            if re.fullmatch(rf"(?:{families})/[\w/.-]+", code):
                assert code in recipes, f"{page.name}: no recipe {code}"
                seen.add("recipe")
            elif code.startswith(("--", "disk-kd compare --")):
                given = set(re.findall(r"(?<!\S)--[\w.-]+", code))
                assert given <= options, f"{page.name}: no option {given - options}"
                seen.add("option")
    assert seen == {"recipe", "option"}


def known_options(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options that the help of any command tells."""
    calls = [[name, "--help-all" if name in EVERY_OPTION else "--help"] for name in COMMANDS]
    calls += [["distill", f"--method={name}", "--help-all"] for name in METHODS]
    calls += [["distill", "--method=kd", f"--hint={name}", "--help-all"] for name in HINTS]
    for call in [*calls, ["bench", "--to-accuracy", "--help"]]:
        with contextlib.suppress(SystemExit):  # argparse's way to end
            main(call)
    return {"--method", "--hint", "--debug", "--help", "--help-all"} | set(
        re.findall(r"--[\w.-]*\w", capsys.readouterr().out)
    )


def test_published_numbers_are_those_of_the_recipes() -> None:
    rows = re.findall(r"^\| `([\w/-]+)` \|.* ([\d.]+) \|$", (ROOT / "docs/paper.md").read_text(), flags=re.MULTILINE)
    assert rows
    assert {name: float(number) for name, number in rows} == {
        name: load_recipe(find_recipe(name))["published"] for name, _ in rows
    }


def test_every_setting_of_the_papers_recipes_stands_beside_the_released_one() -> None:
    """The tables are those that the recipes give today, and every recipe of the paper is in them."""
    settings = runpy.run_path(str(ROOT / "docs/settings.py"))
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    tables = page.split(settings["BEGIN"])[1].split(settings["END"])[0]
    assert tables.strip() == settings["tables"]().strip(), "run: python docs/settings.py"
    of_paper = {name for name in list_recipes() if name.startswith(("cifar100/", "tiny-imagenet/", "imagenet/"))}
    ours = {name for name in of_paper if name.startswith("cifar100/pretrained-") or name.endswith("-simkd-disk-exact")}
    ours |= {name for name in of_paper if name.startswith(("imagenet/resnet34-", "imagenet/resnet50-mobilenetv1/"))}
    assert set(re.findall(r"`((?:cifar100|tiny-imagenet|imagenet)/[\w./-]+)`", tables)) == of_paper - ours


def test_a_difference_from_the_release_without_a_reason_is_refused() -> None:
    table = runpy.run_path(str(ROOT / "docs/settings.py"))["_table"]
    start = ["cifar100/start-resnet10_s"]
    with pytest.raises(ValueError, match=r"train\.lr is 0\.2 in the release, 0\.1 here; reason: None"):
        table("t", start, {"train.lr": 0.2})
    with pytest.raises(ValueError, match=r"train\.lr is 0\.1 in the release, 0\.1 here; reason: because"):
        table("t", start, {"train.lr": 0.1}, {"train.lr": "because"})
    with pytest.raises(ValueError, match=r"train\.weight_decay differs among its recipes"):
        table("t", [*start, "cifar100/resnet10_s/ce"], {"train.weight_decay": 1.0e-5})


def test_the_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert set(re.findall(r"^  ([\w-]+) ", capsys.readouterr().out, flags=re.MULTILINE)) == set(COMMANDS)


def test_links_of_the_readme_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGES[0].read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_site_is_built_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//", html), page.name
    assert '<div class="formula"><svg' in (tmp_path / "site/math.html").read_text(encoding="utf-8")


def test_the_pictures_are_drawn_by_their_script(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "docs/pictures.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/pictures").glob("*.svg")}
