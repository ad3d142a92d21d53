"""What the site does with a page before and after Markdown: mkdocs calls these by their names.

The pages are read in two places. A repository's host shows `$...$` and links to files outside `docs/`; the built site
has no network to fetch a program from that sets mathematics, and none of those files.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ziamath
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_SIZE = 16

_OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Bring pictures into the site that pages show and that lie elsewhere in the repository."""
    for page in files.documentation_pages():
        for picture, _, path in _OUTSIDE.findall(page.content_string):
            if picture and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show such pictures from where they now lie, and of other files outside `docs/` the path in place of a link.

    Raises:
        PluginError: there is no such file.
    """

    def link(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which is not in the repository")
        if picture:
            return f"![{text}]({path})"
        return f"`{path}`" if text.strip("`") == path else f"{text}, `{path}`"

    return _OUTSIDE.sub(link, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as pictures in the page's text, which need neither a script nor a font for mathematics."""
    drawn: set[str] = set()
    return _FORMULA.sub(lambda match: _svg(html.unescape(match[2]), match[1] == "div", drawn), content)


def _svg(tex: str, displayed: bool, drawn: set[str]) -> str:
    """A formula as SVG, on the line of the text; letters that `drawn` holds are on the page already."""
    formula = ziamath.Latex(tex, size=_SIZE, inline=not displayed, color="currentColor")
    picture = formula.svgxml()
    for letter in picture.findall("symbol"):
        if letter.get("id") in drawn:
            picture.remove(letter)
        drawn.add(letter.get("id", ""))
    width, height, drop = (
        f"{float(length) / _SIZE:.3f}em" for length in (picture.get("width"), picture.get("height"), formula.getyofst())
    )
    picture.set("style", f"width: {width}; height: {height}; vertical-align: {0 if displayed else drop}")
    picture.set("role", "img")
    picture.set("aria-label", tex)
    text = ElementTree.tostring(picture, encoding="unicode")
    return f'<div class="formula">{text}</div>' if displayed else text
