"""One self-contained HTML page from the rows of a study."""

from __future__ import annotations

import base64
import html
import importlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fastxai._check import require
from fastxai._files import written_aside
from fastxai.report.blocks import Block, Panels, Picture, Section, Table, Text
from fastxai.report.draw import INK
from fastxai.report.findings import Findings

__all__ = ["build_sections", "page", "write"]

_PNG_DPI = 110


def build_sections(findings: Findings, names: Sequence[str]) -> dict[str, Section]:
    """Return the sections of these names; those whose rows are missing have no blocks.

    Raises:
        ValueError: there is no such section, or a row lacks what a section shows.
    """
    built = {}
    for name in names:
        known = re.fullmatch(r"[a-z]\w*", name) is not None
        require(known, "names", "name modules of fastxai.report.sections", name)
        try:
            module = importlib.import_module(f"fastxai.report.sections.{name}")
        except ModuleNotFoundError as error:
            raise ValueError(f"names must name modules of fastxai.report.sections, got {name}") from error
        built[name] = module.build(findings)
    return built


def page(title: str, source: str, sections: dict[str, Section]) -> str:
    """Return the page: no script, no link to anything outside, light and dark.

    Args:
        title: its heading.
        source: tag of the paper.
        sections: by name, in order.
    """
    style = Path(__file__).with_name("style.css").read_text()
    links = " ".join(f'<a href="#{name}">{_text(section.title)}</a>' for name, section in sections.items())
    body = "\n".join(_section(name, section) for name, section in sections.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>\n"
        f'<p class="faint">A study of {_text(source)}, made by fastxai. Every number is computed from the rows beside '
        f"this page, except those marked as the paper's.</p>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def write(file: str | Path, text: str) -> Path:
    """Write the page, whole or not at all; return its path."""
    file = Path(file)
    with written_aside(file) as aside:
        aside.write_text(text, encoding="utf-8")
    return file


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _section(name: str, section: Section) -> str:
    if section.blocks:
        body = "\n".join(_block(block, f"{name}-{i}") for i, block in enumerate(section.blocks))
    else:
        missing = section.missing or f"No rows yet of {', '.join(section.needs)}."
        body = f'<p class="faint">{_text(missing)}</p>'
    return f'<section id="{name}">\n<h2>{_text(section.title)}</h2>\n{body}\n</section>'


def _block(block: Block, salt: str) -> str:
    if isinstance(block, Text):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Table):
        inside = _table(block)
    elif isinstance(block, Panels):
        drawn = "".join(f"<div>{_svg(figure, f'{salt}-{i}')}</div>" for i, figure in enumerate(block.figures))
        inside = f'<div class="panels">{drawn}</div>'
    else:
        inside = f'<div class="wide">{_png(block)}</div>'
    caption = f"<figcaption>{_text(block.caption)}</figcaption>" if block.caption else ""
    return f"<figure>{inside}{caption}</figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _svg(figure: Figure, salt: str) -> str:
    """Return the figure as inline SVG whose ink is the page's; the salt keeps its ids apart from other figures'."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None, "Creator": None})
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    # Glyphs and markers are named by what they are: two figures on one page would share the names.
    return re.sub(r'(id="|href="#|url\(#)', lambda found: f"{found[1]}{salt}-", drawn)


def _png(picture: Picture) -> str:
    written = io.BytesIO()
    picture.figure.set_dpi(_PNG_DPI)
    FigureCanvasAgg(picture.figure).print_png(written)
    data = base64.b64encode(written.getvalue()).decode()
    words = _text(picture.caption or "images and maps")
    return f'<img class="picture" alt="{words}" src="data:image/png;base64,{data}">'
