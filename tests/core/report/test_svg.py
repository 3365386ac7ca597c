"""Charts: ticks, places of points, texts."""

import re
from xml.etree import ElementTree

import pytest

from fv_jax.core.report.blocks import Chart, Histogram, Line, Point
from fv_jax.core.report.svg import choose_ticks, draw_chart, standalone_svg
from tests.core.report import reports

NAMESPACE = '{http://www.w3.org/2000/svg}'


@pytest.mark.parametrize(
    ('low', 'high', 'ticks'),
    [
        (26.3, 27.4, [26.0, 26.5, 27.0, 27.5]),
        (0.0, 100.0, [0, 50, 100]),
        (0.24, 0.33, [0.2, 0.25, 0.3, 0.35]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (5.0, 5.0, [4.5, 4.75, 5.0, 5.25, 5.5]),
    ],
)
def test_ticks_are_round_and_include_the_values(low, high, ticks):
    found = choose_ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 7
    if (low, high) in [(26.3, 27.4), (0.24, 0.33), (-1.0, 1.0)]:
        assert found == pytest.approx(ticks)


def test_points_are_drawn_in_order_at_their_places():
    drawing = ElementTree.fromstring(draw_chart(reports.chart()))
    (line,) = drawing.iter(f'{NAMESPACE}polyline')
    xs, ys = zip(*(map(float, point.split(',')) for point in line.get('points').split()), strict=True)
    assert list(xs) == sorted(xs) and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert list(ys) == sorted(ys), 'falling values are lower on the page'
    circles = list(drawing.iter(f'{NAMESPACE}circle'))
    assert [float(circle.get('cy')) for circle in circles] == list(ys)
    assert len([path for path in drawing.iter(f'{NAMESPACE}path') if 'error' in path.get('class')]) == 2
    texts = [text.text for text in drawing.iter(f'{NAMESPACE}text')]
    assert {'LPIPS', 'number of steps', 'lower is better', 'runs/a', 'bilinear', '1', '4', '8'} <= set(texts)
    assert 'LPIPS against number of steps. runs/a: 0.25 at 4' in drawing.get('aria-label')


def test_texts_are_escaped():
    drawing = ElementTree.fromstring(draw_chart(reports.chart(reports.HOSTILE)))
    assert reports.HOSTILE in [text.text for text in drawing.iter(f'{NAMESPACE}text')]


def test_file_has_every_colour_that_it_uses():
    text = standalone_svg(reports.chart())
    ElementTree.fromstring(text)
    used = set(re.findall(r'var\((--[a-z]+(?:-\d)?)\)', text)) - {'--series'}
    assert used and all(f'{name}: #' in text for name in used)


def test_long_names_are_shortened():
    drawing = draw_chart(Chart('t', 'x', '', [Line('n' * 100, [Point(1, 1), Point(2, 2)])]))
    assert f'>{"n" * 47}…<' in drawing


def test_bars_of_a_histogram_have_the_heights_of_their_counts():
    parts = {'kept': [4, 0, 2], 'dropped': [0, 3, 2]}
    drawing = ElementTree.fromstring(draw_chart(Histogram('motion', 'percent', [0.0, 0.5, 1.0, 1.5], parts, 'clips')))
    bars = [bar for bar in drawing.iter(f'{NAMESPACE}rect') if float(bar.get('width')) != 24]
    heights = [float(bar.get('height')) for bar in bars]
    assert len(bars) == 4 and heights == pytest.approx([h * heights[0] / 4 for h in (4, 3, 2, 2)], abs=0.11)
    # The last bar is on top of the one before it.
    assert float(bars[3].get('y')) + heights[3] == pytest.approx(float(bars[2].get('y')), abs=0.11)
    assert {'motion', 'percent', 'clips', 'kept', 'dropped', '0', '1.5'} <= {
        text.text for text in drawing.iter(f'{NAMESPACE}text')
    }
    assert 'kept: 6, dropped: 5' in drawing.get('aria-label')


def test_histogram_of_one_part_has_no_legend_and_whole_counts():
    drawing = draw_chart(Histogram(reports.HOSTILE, 'x', [0.0, 2.0], {'all': [1]}, 'clips'))
    texts = [text.text for text in ElementTree.fromstring(drawing).iter(f'{NAMESPACE}text')]
    assert 'all' not in texts and '0.5' not in texts[:3] and texts.count('1') == 2 and reports.HOSTILE in texts
