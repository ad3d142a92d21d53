"""The demo: what it says, and that the methods differ in it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from disk_kd.cli import main
from disk_kd.comparison import DEMO
from disk_kd.recipe import RECIPES, load_recipe

FOLDER = Path(str(RECIPES)) / "digits-demo"


def test_the_recipes_differ_in_their_method_alone() -> None:
    recipes = {path.stem: load_recipe(path) for path in FOLDER.glob("[!_]*.yaml")}
    assert recipes.keys() == DEMO.keys()
    assert len({json.dumps([r["data"], r["student"], r["train"]], sort_keys=True) for r in recipes.values()}) == 1
    teachers = {json.dumps(recipe["teacher"]) for recipe in recipes.values() if "teacher" in recipe}
    assert len(teachers) == 1


@pytest.mark.slow
def test_the_demo_opens_with_what_it_does_and_ends_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--seeds=2", "--jobs=2", f"--runs={tmp_path / 'runs'}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"2 seeds each, 11 runs, 2 at a time: about 1 minute\.", out)
    assert re.search(r"\A.*100 images, of which 30 have a\s+wrong label.*  ce .*  kd .*\[1/11\]", out, re.DOTALL)
    assert out.rstrip().endswith(f"Report: {tmp_path / 'runs' / 'report.html'}")
    with (tmp_path / "runs" / "report.csv").open() as file:
        rows = {row["recipe"].removeprefix("digits-demo/"): row for row in csv.DictReader(file)}
    assert rows.keys() == DEMO.keys()
    assert all(row["n"] == "2" for row in rows.values())
    for name in ("kd", "disk"):
        assert float(rows[name]["top1"]) > float(rows["fitnet"]["top1"]) > float(rows["ce"]["top1"])
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "trained on 100 images of which 30% have a wrong label" in page
    assert "<strong>Gain over ce</strong>" in page
    assert " (flipped)" in page
