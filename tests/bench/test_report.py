from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from disk_kd.bench import BenchSettings
from disk_kd.bench.measure import Rate
from disk_kd.bench.peak import Peak
from disk_kd.bench.plots import figure, svg
from disk_kd.bench.report import Results, csv_text, markdown, rows, sweep_rows, tables
from disk_kd.bench.sweeps import Point
from disk_kd.bench.targets import Target

RATES = [
    Rate("bound", "the bound", None, (900.0, 1000.0, 1200.0)),
    Rate("ce", "CE", None, (1200.0, 1250.0, 1300.0)),
    Rate("disk_stored", "DiSK", "big", (1000.0, 1100.0, 1200.0)),
    Rate("store", "storing one view", "big", (50.0, 50.0, 50.0)),
]
POINTS = [
    Point("batch_size", Rate("ce", "CE", None, (500.0,), 25)),
    Point("batch_size", Rate("ce", "CE", None, (1000.0,), 50)),
    Point("samples", Rate("store", "storing one view", "big", (250.0,), 1000), 200_000),
]
ENVIRONMENT = {"hardware": "a processor", "threads": 2, "versions": {"torch": "2.15.0"}, "git_revision": "abc"}


@pytest.fixture
def results() -> Results:
    peaks = [Peak("disk_stored", "big", 3 << 29, 1 << 30)]
    targets = [Target("CE epoch / the bound", 1.25, 1.25), Target("memory", 2.0, 1.5, at_least=False, unit=" GiB")]
    settings = BenchSettings(teachers=["big"], samples=1000)
    return Results(settings, ENVIRONMENT, RATES, peaks, {"big": 200_000}, targets, POINTS)


def parsed(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_ratios_are_of_medians(results: Results) -> None:
    bound, ce, disk, store = rows(results)
    assert (bound["to_bound"], ce["to_bound"], disk["to_bound"]) == (1.0, 1.25, 1.1)
    assert (bound["to_ce"], ce["to_ce"], disk["to_ce"]) == (0.8, 1.0, 0.88)
    assert (disk["lowest"], disk["highest"]) == (1000.0, 1200.0)
    assert (disk["peak_host_bytes"], disk["peak_device_bytes"]) == (3 << 29, 1 << 30)
    assert (ce["peak_host_bytes"], store["stored_bytes_per_view"]) == (None, 200_000)


def test_passes_as_csv(results: Results) -> None:
    lines = parsed(csv_text(rows(results)))
    assert [line["case"] for line in lines] == ["bound", "ce", "disk_stored", "store"]
    assert (lines[2]["images_per_s"], lines[2]["teacher"], lines[1]["teacher"]) == ("1100.0", "big", "")


def test_sweeps_as_csv() -> None:
    lines = parsed(csv_text(sweep_rows(POINTS)))
    assert [(line["sweep"], line["x"], line["case"]) for line in lines] == [
        ("batch_size", "25", "ce"),
        ("batch_size", "50", "ce"),
        ("samples", "1000", "store"),
    ]
    assert [float(line["us_per_image"]) for line in lines] == [2000.0, 1000.0, 4000.0]
    assert [line["stored_bytes_per_view"] for line in lines] == ["", "", "200000"]


def test_markdown_has_every_case_and_verdict(results: Results) -> None:
    text = markdown(results)
    assert "| DiSK (big) | 1,100 | 1,000 - 1,200 | 1.10 | 0.88 | 1.50 | 1.00 |" in text
    assert "| CE epoch / the bound | 1.25 | >= 1.25 | met |" in text
    assert "| memory | 2 GiB | <= 1.5 GiB | NOT MET |" in text
    assert "Stored logits of big: 200 bytes an image and view." in text
    assert "a processor, 2 threads" in text


def test_the_tables_fit_a_terminal(results: Results) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in tables(results):
        console.print(table)
    text = console.export_text()
    for shown in ("DiSK (big)", "1,100", "1.10", "NOT MET", "1.50"):
        assert shown in text
    assert "…" not in text


def test_the_figure_has_a_panel_for_each_sweep_that_was_measured() -> None:
    drawing = figure(RATES, POINTS)
    bars, *panels = drawing.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["the bound", "CE", "DiSK (big)"]
    assert [axes.get_xlabel() for axes in panels] == ["batch size (images)", "training images"]
    assert all("µs" in axes.get_ylabel() and axes.get_xscale() == "log" for axes in panels)
    xs, ys = panels[0].get_lines()[0].get_data()
    assert (list(xs), list(ys)) == ([25, 50], [2000.0, 1000.0])


def test_ours_others_and_the_bound_differ_in_colour() -> None:
    peers = [Rate("timm", "timm", "big", (300.0,)), Rate("torchdistill", "torchdistill", "big", (200.0,))]
    bars, *_ = figure([*RATES, *peers], []).axes
    bound, ce, disk, timm, torchdistill = [bar.get_facecolor() for bar in bars.patches]
    assert ce == disk
    assert timm == torchdistill
    assert len({bound, ce, timm}) == 3
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["one fixed batch", "ours", "another library"]


@pytest.mark.parametrize("points", [POINTS, []])
def test_the_figure_is_drawn(points: list[Point]) -> None:
    text = svg(figure(RATES, points)).decode()
    assert text.lstrip().startswith("<?xml")
    assert "images/s (dotted: the bound)" in text
    FigureCanvasAgg(figure(RATES, points)).draw()
