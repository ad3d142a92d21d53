from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from disk_kd.svg import figure_svg

ROOT = Path(__file__).parents[1]
PICTURES = [*(ROOT / "docs/pictures").glob("*.svg"), *(ROOT / "results").rglob("*.svg")]


def test_a_figure_is_transparent_and_follows_the_readers_setting() -> None:
    figure = Figure()
    figure.subplots().bar(["a & <b>"], [1], label="one")
    figure.axes[0].legend()
    text = figure_svg(figure, fonttype="none")
    ElementTree.fromstring(text)
    assert 'id="figure_1"' in text
    assert "prefers-color-scheme: dark) { #figure_1 {" in text
    assert "#ffffff" not in text
    assert "a &amp; &lt;b&gt;" in text
    assert text == figure_svg(figure, fonttype="none")


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_the_pictures_of_the_pages_have_no_white_ground(path: Path) -> None:
    text = path.read_text()
    assert "#ffffff" not in text
    assert "prefers-color-scheme: dark" in text
