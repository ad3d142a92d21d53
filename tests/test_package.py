"""What is published beside the code: metadata, archives, citation, licences, and the evidence in `results/`."""

from __future__ import annotations

import io
import re
import runpy
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import check_dist
from disk_kd.comparison import read_experiment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STUDIES = sorted(path for path in RESULTS.iterdir() if path.is_dir() and path.name != "__pycache__")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *RESULTS.rglob("*.md"), *ROOT.glob("src/**/README.md")]


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def write_sdist(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as sdist:
        for name, data in files.items():
            item = tarfile.TarInfo(f"disk_kd-1/{name}")
            item.size = len(data)
            sdist.addfile(item, io.BytesIO(data))
    return path


def archives(folder: Path, *, without: str = "", **more: bytes) -> Path:
    """A wheel and an sdist that have all that they need, but one file, and more."""
    package = check_dist.package_files() - {without}
    write_wheel(folder / "disk_kd-1-py3-none-any.whl", dict.fromkeys(package, b"") | more)
    beside = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "PKG-INFO")
    write_sdist(
        folder / "disk_kd-1.tar.gz",
        dict.fromkeys([f"src/{name}" for name in package], b"") | dict.fromkeys(beside, b""),
    )
    return folder


def test_recipes_weights_and_the_mark_of_types_are_files_of_the_package():
    package = check_dist.package_files()
    assert {"disk_kd/py.typed", "disk_kd/recipes/digits/kd.yaml", "disk_kd_command.py"} <= package
    assert sum(name.endswith(".safetensors") for name in package) == 2


def test_complete_archives_have_no_problem(tmp_path):
    assert check_dist.check(archives(tmp_path)) == []


@pytest.mark.parametrize("name", ["disk_kd/py.typed", "disk_kd/recipes/digits/kd.yaml"])
def test_a_missing_file_is_named(tmp_path, name):
    faults = check_dist.check(archives(tmp_path, without=name))
    assert faults == [
        f"disk_kd-1-py3-none-any.whl: {name} is missing",
        f"disk_kd-1.tar.gz: src/{name} is missing",
    ]


@pytest.mark.parametrize(
    "name", ["tests/test_cli.py", "disk_kd/__pycache__/cli.pyc", ".env", "id_rsa", "disk_kd/teacher.pth"]
)
def test_what_does_not_belong_into_an_archive_is_named(tmp_path, name):
    faults = check_dist.check(archives(tmp_path, **{name: b"x"}))
    assert faults == [f"disk_kd-1-py3-none-any.whl: {name} does not belong there"]


def test_a_huge_file_and_a_second_wheel_are_named(tmp_path):
    archives(tmp_path, **{"disk_kd/big.bin": bytes((3 << 20) + 1)})
    write_wheel(tmp_path / "other.whl", dict.fromkeys(check_dist.package_files(), b""))
    faults = check_dist.check(tmp_path)
    assert f"{tmp_path} has 2 files *.whl, not one" in faults
    assert "disk_kd-1-py3-none-any.whl: disk_kd/big.bin has 3,145,729 bytes" in faults


def test_the_pinned_versions_are_within_what_is_declared():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}
    extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name in pins:
            assert pins[requirement.name] in requirement.specifier, requirement
    assert {Requirement(item).name for item in PROJECT["dependencies"]} <= pins.keys()


def test_each_dependency_has_a_lowest_version():
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert [item.operator for item in requirement.specifier] == [">="], requirement


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["version"] == metadata.version("disk-kd")
    assert [item["title"] for item in citation["references"]] == ["Scaffolding a Student to Instill Knowledge"]


def test_the_licences_page_names_every_dataset_and_all_weights():
    text = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    for dataset in ("CIFAR-10", "CIFAR-100", "Tiny-ImageNet", "ImageNet", "digits"):
        assert re.search(rf"^\| {dataset} \|", text, flags=re.MULTILINE), dataset
    weights = {path.stem for path in (ROOT / "src/disk_kd/models/pretrained").glob("*.safetensors")}
    assert weights <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_states_its_claim_and_command_and_is_in_the_list(study):
    text = (study / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert re.search(r"^    (disk-kd|make|cd|python) ", text, flags=re.MULTILINE), "no command"
    assert f"({study.name}/README.md)" in (RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_explains_its_files_and_has_no_large_one(study):
    text = (study / "README.md").read_text(encoding="utf-8") + (RESULTS / "README.md").read_text(encoding="utf-8")
    files = [path for path in study.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) <= 30
    assert sum(path.stat().st_size for path in files) < 400_000
    named = [path.name for path in files if path.name in text or path.stem in text]
    assert sorted({path.name for path in files} - {"README.md"} - set(named)) == []


def test_links_between_files_exist():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_files_of_results_that_texts_name_exist():
    """Paths in code, which are no links."""
    named = set()
    for path in [*PAGES, *ROOT.glob("docs/*.py"), *ROOT.glob("src/disk_kd/recipes/**/*.yaml")]:
        named |= set(re.findall(r"(?<![\w/.-])results/[\w/.-]*[\w-]\.[a-z.]+\b", path.read_text(encoding="utf-8")))
    assert len(named) > 5
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_is_read(path):
    assert read_experiment(path).groups


@pytest.mark.parametrize("folder", ["tuned-kd", "misled"])
def test_methods_that_experiments_name_exist(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    methods = runpy.run_path(str(RESULTS / folder / "hypotheses.py"))
    texts = [path.read_text(encoding="utf-8") for path in (RESULTS / folder).glob("*.yaml")]
    with tarfile.open(RESULTS / folder / "exploration.tar.xz") as archive:
        texts += [read(archive, item) for item in archive if item.name.endswith(".yaml")]
    named = {name for text in texts for name in re.findall(r"hypotheses:(\w+)", text)}
    assert len(named) > 1
    assert named <= methods.keys()


def read(archive: tarfile.TarFile, item: tarfile.TarInfo) -> str:
    file: Any = archive.extractfile(item)
    return file.read().decode()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.tar.xz")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_archive_tells_nothing_of_the_machine_that_packed_it(path):
    with tarfile.open(path) as archive:
        items = archive.getmembers()
        texts = [read(archive, item) for item in items if item.isfile()]
    assert {(item.mtime, item.uid, item.gid, item.uname, item.gname) for item in items} == {(0, 0, 0, "", "")}
    names = [item.name.split("/") for item in items]
    assert names == sorted(names)
    assert not [text for text in texts if re.search(r"/(work|root|home|tmp)/", text)]
