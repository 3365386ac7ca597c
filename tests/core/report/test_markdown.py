"""The Markdown of a report: escaped, with relative links to files that exist."""

import re
from urllib.parse import unquote

import pytest

from fv_jax.core.report.blocks import Cell, Column, Figure, Mark, Report, Table, Text
from fv_jax.core.report.markdown import to_markdown
from tests.core.report import reports


def test_links_lead_to_files_beside_the_report(tmp_path):
    media = tmp_path / 'media'
    elsewhere = tmp_path / 'some videos'
    elsewhere.mkdir()
    text = to_markdown(reports.report(elsewhere, 'x'), media)
    links = re.findall(r'\]\(([^)]*)\)', text)
    assert len(links) == 7 and all((tmp_path / unquote(link)).is_file() for link in links), links
    assert sorted(path.name for path in media.iterdir()) == ['chart_1.svg', 'chart_2.svg', 'chart_3.svg', 'image_1.png']
    assert 'some%20videos/a%201.mp4' in links
    assert (media / 'image_1.png').read_bytes() == reports.png('blue')


def test_no_folder_is_made_without_need(tmp_path):
    to_markdown(Report('t', [Text('a')]), tmp_path / 'media')
    assert not (tmp_path / 'media').exists()


def test_texts_are_escaped(tmp_path):
    text = to_markdown(reports.report(tmp_path), tmp_path / 'media')
    without_escapes = re.sub(r'\\.', '', text)
    assert '</script>' not in without_escapes and '<b>' not in without_escapes
    assert text.startswith('# \\<b\\>&amp;"x\'\\|\\*\\_\\`\\[\\]\\</script\\>\n')
    rows = [line for line in text.splitlines() if line.startswith('|')]
    assert {len(re.findall(r'(?<!\\)\|', row)) for row in rows} == {3}


def test_table(tmp_path):
    table = Table(
        [Column('Method'), Column('PSNR', 'dB', numeric=True)],
        [[Cell('a'), Cell('27.1', '± 0.4', Mark.BEST)], [Cell('b'), Cell('+2', '[1, 3]', Mark.BETTER)]],
    )
    assert to_markdown(Report('t', [table]), tmp_path).splitlines()[2:] == [
        '| Method | PSNR (dB) |',
        '| --- | ---: |',
        '| a | **27.1** ± 0.4 |',
        '| b | ✓ +2 \\[1, 3\\] |',
    ]


def test_bytes_that_are_no_image_are_refused(tmp_path):
    with pytest.raises(ValueError, match='<3 bytes>: not an image'):
        to_markdown(Report('t', [Figure(b'abc', 'alt')]), tmp_path)
