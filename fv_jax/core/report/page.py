"""Writes a report as one self-contained HTML file: images and videos are data URIs, style and script are inline.

A content security policy forbids every request, so that a page that is sent to somebody shows what it showed here.
"""

import importlib.resources
import json
from collections.abc import Iterable
from html import escape

from fv_jax.core.report import blocks
from fv_jax.core.report.blocks import SIGNS, Block, Cell, Mark, Report
from fv_jax.core.report.images import data_uri, read_image
from fv_jax.core.report.svg import chart_css, draw_chart

_POLICY = (
    "default-src 'none'; img-src data:; media-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_NAVIGATION = 3  # sections, from which number on the page has a table of contents


def to_html(report: Report) -> str:
    """Returns the HTML of a report. Raises ValueError for an image that is none, OSError for a file that is missing."""
    sections = _sections(report)
    links = ''.join(f'<a href="#{name}">{escape(text)}</a>' for name, text in sections.values())
    navigation = f'<nav aria-label="Sections">{links}</nav>' if len(sections) >= _NAVIGATION else ''
    body = '\n'.join(
        _heading(block, sections[i][0]) if i in sections else _block(block) for i, block in enumerate(report.blocks)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(report.title)}</title>
<link rel="icon" href="data:,">
<style>
{_package_text('page.css')}
{_package_text('comparison.css')}
{chart_css()}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
<button type="button" id="theme" hidden>Dark</button>
{navigation}
</header>
<main>
{body}
</main>
<script>
{_package_text('comparison.js')}
{_package_text('page.js')}</script>
</body>
</html>
"""


def _package_text(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding='utf-8')


def _sections(report: Report) -> dict[int, tuple[str, str]]:
    """Returns the index of every heading of level 2, with its anchor and text."""
    headings = [(i, b) for i, b in enumerate(report.blocks) if isinstance(b, blocks.Heading) and b.level == 2]
    return {i: (f'section-{n}', heading.text) for n, (i, heading) in enumerate(headings, 1)}


def _block(block: Block) -> str:
    match block:
        case blocks.Heading():
            return _heading(block)
        case blocks.Text():
            return f'<p{" class=lead" if block.lead else ""}>{escape(block.text)}</p>'
        case blocks.Table():
            return _table(block)
        case blocks.Figure():
            return _figure(block)
        case blocks.Chart() | blocks.Histogram():
            return _charts([block], '')
        case blocks.Charts():
            return _charts(block.charts, block.caption)
        case blocks.VideoComparison():
            return _comparison(block)


def _heading(heading: blocks.Heading, anchor: str = '') -> str:
    attribute = f' id="{anchor}"' if anchor else ''
    return f'<h{heading.level}{attribute}>{escape(heading.text)}</h{heading.level}>'


def _caption(text: str) -> str:
    return f'<figcaption>{escape(text)}</figcaption>' if text else ''


def _table(table: blocks.Table) -> str:
    # Details have one width in a column, so that values are aligned whether or not each has one.
    widths = [max((len(row[i].detail) for row in table.rows), default=0) for i in range(len(table.columns))]
    head = ''.join(
        f'<th scope="col"{" class=number" if column.numeric else ""}>{escape(column.title)}'
        f'{f"<small>{escape(column.detail)}</small>" if column.detail else ""}</th>'
        for column in table.columns
    )
    rows = ''.join(
        f'<tr><th scope="row">{_cell_content(row[0], len(row[0].detail))}</th>'
        + ''.join(
            f'<td class="{"number " if column.numeric else ""}{cell.mark.value}">{_cell_content(cell, width)}</td>'
            for cell, column, width in zip(row[1:], table.columns[1:], widths[1:], strict=True)
        )
        + '</tr>\n'
        for row in table.rows
    )
    label = escape(table.caption or table.columns[0].title)
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f'<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>{_caption(table.caption)}</figure>'
    )


def _cell_content(cell: Cell, detail_width: int) -> str:
    sign = SIGNS.get(cell.mark, '')
    shown = f'<i title="{cell.mark.value}">{sign}</i>' if sign else ''
    value = f'<b>{escape(cell.text)}</b>' if cell.mark is Mark.BEST else escape(cell.text)
    detail = f'<small style="--width:{detail_width}ch">{escape(cell.detail)}</small>' if detail_width else ''
    return f'{shown}<span>{value}</span>{detail}'


def _figure(figure: blocks.Figure) -> str:
    image = read_image(figure.image)
    return (
        '<figure class="image"><button type="button" class="enlarge" aria-pressed="false" '
        'title="Switch between the width of the page and the size of the image">'
        f'<img src="{data_uri(image.mime, image.data)}" alt="{escape(figure.alt)}" width="{image.width}" '
        f'height="{image.height}"></button>{_caption(figure.caption)}</figure>'
    )


def _charts(charts: Iterable[blocks.Chart | blocks.Histogram], caption: str) -> str:
    drawings = '\n'.join(draw_chart(chart) for chart in charts)
    return f'<figure><div class="charts">\n{drawings}\n</div>{_caption(caption)}</figure>'


def _comparison(comparison: blocks.VideoComparison) -> str:
    """Writes the controls of a comparison, and its videos as a list of base64 texts that the script decodes."""
    labels = [*comparison.videos]
    height, width = comparison.size
    # Base64 has no character that ends a script element.
    videos = json.dumps([data_uri('video/mp4', path.read_bytes()) for path in comparison.videos.values()])
    poster = ''
    if comparison.poster is not None:
        image = read_image(comparison.poster)
        poster = f' poster="{data_uri(image.mime, image.data)}"'
    name = escape(comparison.name)
    video = f'<video muted playsinline preload="auto" width="{width}" height="{height}"{poster}></video>'
    return f"""<figure class="comparison" data-fps="{comparison.fps!r}" aria-label="Comparison of videos: {name}">
<div class="sides">
<label>Left {_select('left', labels, comparison.left)}</label>
<label>Right {_select('right', labels, comparison.right)}</label>
</div>
<div class="stage" style="--height:{height};--width:{width}">
{video}
{video}
<span class="name left"></span><span class="name right"></span>
<div class="slider" role="slider" tabindex="0" aria-label="Boundary between left and right: {name}"
 aria-orientation="horizontal" aria-valuemin="0" aria-valuemax="100" aria-valuenow="50"></div>
</div>
<div class="controls">
<button type="button" class="play">Play</button>
<button type="button" class="back" aria-label="Previous frame">&lsaquo;</button>
<button type="button" class="forward" aria-label="Next frame">&rsaquo;</button>
<input type="range" class="position" min="0" max="0" value="0" step="1" aria-label="Frame">
<output class="frame"></output>
<label><input type="checkbox" class="loop" checked> Loop</label>
</div>
<noscript><p>The comparison of videos needs JavaScript.</p></noscript>
<script type="application/json">{videos}</script>
</figure>"""


def _select(side: str, labels: Iterable[str], selected: str) -> str:
    options = ''.join(f'<option{" selected" if label == selected else ""}>{escape(label)}</option>' for label in labels)
    return f'<select class="{side}">{options}</select>'
