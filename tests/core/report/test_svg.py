"""Charts: ticks, places of points, texts."""

import re
from xml.etree import ElementTree

import pytest

from fv_jax.core.report.blocks import Chart, Line, Point
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
