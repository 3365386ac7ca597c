"""The HTML of a report: self-contained, escaped, all blocks in it."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from fv_jax.core.report import blocks
from fv_jax.core.report.page import to_html
from tests.core.report import reports

VOID = {'meta', 'link', 'img', 'input', 'br'}


class Parsed(HTMLParser):
    """Collects elements and texts; raises AssertionError where an element is closed that is not open."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def html(tmp_path):
    return to_html(reports.report(tmp_path))


def test_texts_are_escaped(html):
    page = Parsed(html)
    # Title twice, lead, two headings, a link, seven in the table, captions, names, options.
    assert page.texts.count(reports.HOSTILE) >= 16
    assert len(page.all('b')) == 1, 'only the best cell is bold'
    assert len(page.all('script')) == 2
    assert page.all('img')[0]['alt'] == reports.HOSTILE


def test_nothing_is_requested(html):
    for tag, attributes in Parsed(html).elements:
        for name in ('src', 'href', 'poster', 'data', 'srcset'):
            assert (attributes.get(name) or 'data:').startswith(('data:', '#')), (tag, name)
    assert 'url(' not in html and '@import' not in html
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', html)
    assert "default-src 'none'" in html


def test_files_are_in_the_page(html, tmp_path):
    page = Parsed(html)
    assert [image['width'] for image in page.all('img')] == ['3', '3']
    prefix = 'data:image/png;base64,'
    assert base64.b64decode(page.all('img')[0]['src'].removeprefix(prefix)) == reports.png()
    videos = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    decoded = [base64.b64decode(uri.removeprefix('data:video/mp4;base64,')) for uri in videos]
    assert decoded == [b'a', b'b']
    selected = [i % 2 for i, option in enumerate(page.all('option')) if 'selected' in option]
    assert selected == [0, 1], 'left shows the first video and right the second'


def test_table_of_contents_leads_to_the_sections(html):
    page = Parsed(html)
    targets = [link['href'].removeprefix('#') for link in page.all('a')]
    assert len(targets) == 3 and targets == [heading['id'] for heading in page.all('h2')]


def test_marks_are_signs_and_not_colours_alone(html):
    assert re.search(r'<td class="number worse"><i title="worse">✗</i><span>2', html)
    assert re.search(r'<td class="number best"><span><b>', html)


def test_bad_files_are_named(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'a\.png: not an image of the formats PNG'):
        to_html(blocks.Report('t', [blocks.Figure(tmp_path / 'a.png', 'alt')]))
    with pytest.raises(ValueError, match=r'city: no video is named .c.; the names are'):
        blocks.VideoComparison('city', {'a': tmp_path / 'a.mp4'}, (2, 2), 12, 'a', 'c')
