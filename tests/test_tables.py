from __future__ import annotations

import csv

import pytest

from disk_kd.tables import as_markdown, csv_lines, markdown_table


@pytest.mark.parametrize("name", ["=1+1", "+1", "-x", "@sum(1)", "\t=1", "\r=1"])
def test_a_spreadsheet_runs_no_text(name: str) -> None:
    text = csv_lines([{"name": name, "gain": -1.5, "none": None}], ["name", "gain", "none"])
    assert f"'{name}" in text
    assert "-1.5," in text


def test_any_text_comes_back_from_csv() -> None:
    row = {"name": 'a,"b"\n<c>', "path": "x|y"}
    assert list(csv.DictReader(csv_lines([row], list(row)).splitlines(keepends=True))) == [row]


def test_text_stays_in_its_cell() -> None:
    name = as_markdown("a|b\n`c` <img src=x> [d](e)")
    assert markdown_table(("x", "y"), [(name, "1")])[1:] == [
        "|---|---|",
        r"| a\|b \`c\` \<img src=x\> \[d\](e) | 1 |",
    ]
