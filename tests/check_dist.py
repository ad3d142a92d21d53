"""Check the files in a wheel and an sdist: `make dist` runs `python tests/check_dist.py dist`."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
LARGEST_BYTES = 3 << 20
"""The teacher's weights have 2.5 MB."""
FORBIDDEN = re.compile(
    r"(^|/)(tests?|results|runs|site|dist|\.git\w*|\.venv|\.ci|__pycache__)/"
    r"|\.(pyc|pem|key|p12|env|pth|pt|ckpt|tar)$"
    r"|(^|/)(\.env|\.netrc|\.pypirc|id_\w+|credentials\w*)$"
)
"""Tests, results, caches, secrets and pickled weights."""


def package_files() -> set[str]:
    """Files below src/ that an installation needs."""
    paths = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(SOURCE).as_posix() for path in paths}


def contents(archive: Path) -> dict[str, int]:
    """Names and sizes in bytes of a wheel's or an sdist's files; an sdist's without its folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {item.filename: item.file_size for item in wheel.infolist()}
    with tarfile.open(archive) as sdist:
        return {item.name.partition("/")[2]: item.size for item in sdist.getmembers() if item.isfile()}


def problems(files: Mapping[str, int], needed: set[str]) -> list[str]:
    """What is wrong with an archive that has these files.

    Args:
        files: names and sizes in bytes.
        needed: names that it must have.
    """
    found = [f"{name} is missing" for name in sorted(needed - files.keys())]
    found += [f"{name} does not belong there" for name in sorted(files) if FORBIDDEN.search(name)]
    found += [f"{name} has {size:,} bytes" for name, size in sorted(files.items()) if size > LARGEST_BYTES]
    return found


def check(folder: Path) -> list[str]:
    """Problems of the one wheel and the one sdist in a folder."""
    package = package_files()
    beside = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "PKG-INFO"}
    found = []
    for pattern, needed in (("*.whl", package), ("*.tar.gz", {f"src/{name}" for name in package} | beside)):
        archives = list(folder.glob(pattern))
        if len(archives) != 1:
            found.append(f"{folder} has {len(archives)} files {pattern}, not one")
        for archive in archives:
            found += [f"{archive.name}: {problem}" for problem in problems(contents(archive), needed)]
    return found


if __name__ == "__main__":
    faults = check(Path(sys.argv[1]))
    print("\n".join(faults) or "wheel and sdist: contents are right")
    sys.exit(bool(faults))
