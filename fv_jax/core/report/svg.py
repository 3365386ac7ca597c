"""Draws charts as SVG. Colours are classes, so that one drawing serves a light and a dark page (`chart.css`)."""

import html
import importlib.resources
import itertools
import math
from collections.abc import Callable, Sequence

from fv_jax.core.report.blocks import Chart, Histogram, Point

_WIDTH = 380
_PLOT_HEIGHT = 190
_TOP, _LEFT, _RIGHT, _AXIS = 34, 48, 14, 40  # margins; _AXIS is below the plot
_LEGEND_LINE = 18
_CAP = 3  # pixels: half the width of the caps of an error bar
_NAME_LENGTH = 48  # characters of a name in the legend
# Of a chart in a file of its own.
_LIGHT = """
svg { background: #fff; --ink: #1d1f23; --muted: #5f6670; --rule: #dcdfe4;
--series-0: #1f5fbf; --series-1: #b4541a; --series-2: #2c7a4b;
--series-3: #8a3ea0; --series-4: #8a6d00; --series-5: #a3244f;
font-family: system-ui, sans-serif; }
"""


def chart_css() -> str:
    """Returns the style of charts, which takes its colours from the custom properties of the page."""
    return importlib.resources.files(__package__).joinpath('chart.css').read_text(encoding='utf-8')


def standalone_svg(chart: Chart | Histogram) -> str:
    """Draws a chart as the content of an SVG file."""
    drawing = draw_chart(chart)
    start = drawing.index('>') + 1
    return f'{drawing[:start]}<style>{_LIGHT}{chart_css()}</style>{drawing[start:]}\n'


def draw_chart(chart: Chart | Histogram) -> str:
    """Draws a chart as an `svg` element."""
    return _draw_histogram(chart) if isinstance(chart, Histogram) else _draw_lines(chart)


def _draw_lines(chart: Chart) -> str:
    xs = sorted({point.x for line in chart.lines for point in line.points})
    ticks = choose_ticks(*_y_range(chart))
    bottom, right = _TOP + _PLOT_HEIGHT, _WIDTH - _RIGHT

    def place_x(x: float) -> float:
        return _LEFT + (right - _LEFT) * (xs.index(x) + 0.5) / len(xs)

    def place_y(y: float) -> float:
        return bottom - _PLOT_HEIGHT * (y - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [
        *_start(chart, _describe(chart), len(chart.lines) + len(chart.levels)),
        *_axes(chart, ticks, [(place_x(x), f'{x:g}') for x in xs], place_y),
    ]
    for i, level in enumerate(chart.levels, len(chart.lines)):
        y = place_y(level.y)
        parts.append(f'<line class="level series-{i % 6}" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for i, line in enumerate(chart.lines):
        parts += _line(line.points, i % 6, place_x, place_y)
    names = [*((line.name, 'line') for line in chart.lines), *((level.name, 'level') for level in chart.levels)]
    for i, (name, kind) in enumerate(names):
        y = bottom + _AXIS + _LEGEND_LINE * (i + 0.5)
        parts.append(f'<line class="{kind} series-{i % 6}" x1="{_LEFT}" x2="{_LEFT + 24}" y1="{y}" y2="{y}"/>')
        parts.append(_text(_LEFT + 32, y + 4, name, 'legend', 'start'))
    return '\n'.join([*parts, '</svg>'])


def _start(chart: Chart | Histogram, description: str, entries: int) -> list[str]:
    """Begins a drawing with its title and room for so many entries of a legend."""
    height = _TOP + _PLOT_HEIGHT + _AXIS + _LEGEND_LINE * entries + 6
    return [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(description)}">',
        _text(0, 16, chart.title, 'title', 'start'),
    ]


def _draw_histogram(chart: Histogram) -> str:
    names = [*chart.parts]
    totals = [sum(counts) for counts in zip(*chart.parts.values(), strict=True)]
    ticks = choose_ticks(0, max(1, *totals))
    # Counts are whole.
    ticks = [tick for tick in ticks if tick == int(tick)]
    low, high = chart.edges[0], chart.edges[-1]
    bottom, right = _TOP + _PLOT_HEIGHT, _WIDTH - _RIGHT

    def place_x(x: float) -> float:
        return _LEFT + (right - _LEFT) * (x - low) / (high - low)

    def place_y(y: float) -> float:
        return bottom - _PLOT_HEIGHT * y / ticks[-1]

    x_ticks = [x for x in choose_ticks(low, high) if low <= x <= high]
    counted = ', '.join(f'{name}: {sum(counts)}' for name, counts in chart.parts.items())
    parts = [
        *_start(chart, f'{chart.title}, {chart.x_label}: histogram. {counted}', len(names) if len(names) > 1 else 0),
        *_axes(chart, ticks, [(place_x(x), f'{x:g}') for x in x_ticks], place_y),
    ]
    for i, (first, last) in enumerate(itertools.pairwise(chart.edges)):
        below = 0
        for series, counts in enumerate(chart.parts.values()):
            if counts[i]:
                top, height = place_y(below + counts[i]), place_y(below) - place_y(below + counts[i])
                x, width = place_x(first) + 0.5, max(place_x(last) - place_x(first) - 1, 1)
                parts.append(
                    f'<rect class="bar series-{series % 6}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{height:.1f}"/>'
                )
            below += counts[i]
    for i, name in enumerate(names if len(names) > 1 else ()):
        y = bottom + _AXIS + _LEGEND_LINE * (i + 0.5)
        parts.append(f'<rect class="bar series-{i % 6}" x="{_LEFT}" y="{y - 5}" width="24" height="10"/>')
        parts.append(_text(_LEFT + 32, y + 4, name, 'legend', 'start'))
    return '\n'.join([*parts, '</svg>'])


def choose_ticks(low: float, high: float) -> list[float]:
    """Returns three to seven evenly spaced round values, the first at most `low` and the last at least `high`."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _y_range(chart: Chart) -> tuple[float, float]:
    points = [point for line in chart.lines for point in line.points]
    values = [y for p in points for y in (p.y - p.error, p.y + p.error)] + [level.y for level in chart.levels]
    return min(values), max(values)


def _axes(
    chart: Chart | Histogram,
    ticks: Sequence[float],
    x_ticks: Sequence[tuple[float, str]],
    place_y: Callable[[float], float],
) -> list[str]:
    """Draws the axes and their labels; x_ticks: places and texts."""
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    parts = []
    for tick in ticks:
        y = place_y(tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f'{tick:.{digits}f}'.replace('-', '\N{MINUS SIGN}'), 'tick', 'end'))
    bottom, right = _TOP + _PLOT_HEIGHT, _WIDTH - _RIGHT
    parts += [_text(x, bottom + 16, text, 'tick', 'middle') for x, text in x_ticks]
    parts.append(_text((_LEFT + right) / 2, bottom + 33, chart.x_label, 'label', 'middle'))
    parts.append(_text(right, 16, chart.y_label, 'label', 'end'))
    return parts


def _line(
    points: Sequence[Point], series: int, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> list[str]:
    points = sorted(points, key=lambda point: point.x)
    path = ' '.join(f'{place_x(p.x):.1f},{place_y(p.y):.1f}' for p in points)
    parts = [f'<polyline class="line series-{series}" points="{path}"/>']
    for p in points:
        x, y = place_x(p.x), place_y(p.y)
        if p.error:
            low, high = place_y(p.y - p.error), place_y(p.y + p.error)
            parts.append(
                f'<path class="error series-{series}" d="M{x:.1f} {low:.1f}V{high:.1f}'
                f'M{x - _CAP:.1f} {low:.1f}h{2 * _CAP}M{x - _CAP:.1f} {high:.1f}h{2 * _CAP}"/>'
            )
        parts.append(f'<circle class="point series-{series}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>')
    return parts


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    shown = text if len(text) <= _NAME_LENGTH else f'{text[: _NAME_LENGTH - 1]}…'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(shown)}</text>'


def _describe(chart: Chart) -> str:
    """Describes a chart in words, with its values."""
    parts = [f'{line.name}: ' + ', '.join(f'{p.y:g} at {p.x:g}' for p in line.points) for line in chart.lines]
    parts += [f'{level.name}: {level.y:g}' for level in chart.levels]
    return f'{chart.title} against {chart.x_label}. ' + '; '.join(parts)
