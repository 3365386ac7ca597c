"""A report with every kind of block, and texts that HTML and Markdown would read as marks."""

import io
from pathlib import Path

from PIL import Image

from fv_jax.core.report.blocks import (
    Cell,
    Chart,
    Charts,
    Column,
    Figure,
    Heading,
    Histogram,
    Level,
    Line,
    Mark,
    Point,
    Report,
    Table,
    Text,
    VideoComparison,
)

HOSTILE = '<b>&"x\'|*_`[]</script>'


def png(color: str = 'red') -> bytes:
    """Makes a PNG of 3x2 pixels."""
    buffer = io.BytesIO()
    Image.new('RGB', (3, 2), color).save(buffer, 'PNG')
    return buffer.getvalue()


def chart(name: str = 'runs/a') -> Chart:
    """Makes a chart with one line of three points and a level."""
    points = [Point(4, 0.25, 0.02), Point(1, 0.30, 0.01), Point(8, 0.24)]
    return Chart('LPIPS', 'number of steps', 'lower is better', [Line(name, points)], [Level('bilinear', 0.31)])


def report(folder: Path, text: str = HOSTILE) -> Report:
    """Makes a report whose texts are all `text`; the videos in `folder` are not videos."""
    for name in ('a', 'b'):
        (folder / f'{name} 1.mp4').write_bytes(name.encode())
    (folder / 'strip.png').write_bytes(png())
    videos = {text: folder / 'a 1.mp4', 'b': folder / 'b 1.mp4'}
    table = Table(
        [Column(text, text), Column(text, text, numeric=True)],
        [[Cell(text, text), Cell(text, text, Mark.BEST)], [Cell('b'), Cell('2', '', Mark.WORSE)]],
        text,
    )
    return Report(
        text,
        [
            Text(text, lead=True),
            Heading(text),
            table,
            Heading(text, 3),
            Figure(folder / 'strip.png', text, text),
            Figure(png('blue'), text),
            Heading('Chart'),
            chart(text),
            Charts([chart(), Histogram(text, text, [0.0, 1.0], {text: [2]}, text)], text),
            Heading('Videos'),
            VideoComparison(text, videos, (2, 3), 12.0, text, 'b', png()),
        ],
    )
