from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes

from disk_kd.report.drawing import MOST, Series, draw
from disk_kd.report.figures import Line, over_epochs, short_number


def paint(axes: Axes) -> None:
    for series in (Series("one", 0), Series("teacher", None)):
        axes.plot([0, 1], [0.00012345, 1], color=series.color, marker=series.marker, linestyle=series.dash)
    axes.text(0, 0, "0.123456")


def test_a_figure_takes_colours_and_font_from_the_page() -> None:
    svg = draw("k", "what it shows", paint)
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert "var(--s0)" in svg
    assert "var(--grid)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|<style|<metadata|http", svg)
    assert 'role="img" aria-label="what it shows"' in svg
    assert ">0.123456<" in svg, "text is not rounded as coordinates are"


def test_ids_are_of_the_figure_alone() -> None:
    one, other = (draw(key, "label", paint) for key in ("a", "b"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', one)) <= ids[0]


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert draw("k", "label", paint) == draw("k", "label", paint)


def test_a_label_is_escaped() -> None:
    assert "<b>" not in draw("k", '"><b>', paint).split(">", 1)[0]
    assert 'aria-label="&#34;&gt;&lt;b&gt;"' in draw("k", '"><b>', paint)


def test_all_series_differ_in_marker_and_in_colour() -> None:
    every = [Series(str(i), i) for i in range(MOST)] + [Series("teacher", None)]
    assert len({series.marker for series in every}) == len({series.color for series in every}) == MOST + 1
    assert all(f"var(--s{i})" in every[i].swatch() for i in range(MOST))


def test_long_logs_are_thinned_to_means_of_neighbours() -> None:
    values = [float(i % 2) for i in range(1000)]
    thin = Line(Series("a", 0), list(range(1000)), values).thinned()
    assert len(thin.x) == len(thin.mean) <= 120
    assert sum(thin.mean) / len(thin.mean) == pytest.approx(0.5, abs=0.01)
    assert "<path" in over_epochs("k", "label", "nats", [thin], may_log=True)


def test_short_numbers() -> None:
    assert [short_number(n) for n in (512, 24_770, 1_044_736, 4.1e9)] == ["512", "24.8 k", "1.04 M", "4.1 G"]
