"""Writes a report as Markdown (GitHub's), which has everything of the page but the slider between videos."""

import re
from collections.abc import Iterator
from urllib.parse import quote

from fv_jax.core.files import make_folder, write_bytes, write_text
from fv_jax.core.paths import StoragePath, relative_path
from fv_jax.core.report import blocks
from fv_jax.core.report.blocks import SIGNS, Block, Cell, Mark, Report
from fv_jax.core.report.images import read_image
from fv_jax.core.report.svg import standalone_svg


def to_markdown(report: Report, media_folder: StoragePath) -> str:
    """Returns the Markdown of a report, for a file beside the folder `media_folder`.

    Images and videos in files are linked where they are, relative to that file. What is in no file yet, images in
    bytes and charts, is written to `media_folder`, which is made if needed.

    Raises:
      ValueError: an image in bytes that is none.
      OSError: `media_folder` cannot be written.
    """
    writer = _Writer(media_folder)
    parts = [f'# {_escape(report.title)}', *(part for block in report.blocks for part in writer.write(block))]
    return '\n\n'.join(filter(None, parts)) + '\n'


class _Writer:
    """Writes blocks and, numbered, the files that they need."""

    def __init__(self, media_folder: StoragePath):
        self._folder = media_folder
        self._charts = 0
        self._images = 0

    def write(self, block: Block) -> Iterator[str]:
        """Yields the paragraphs of a block."""
        match block:
            case blocks.Heading():
                yield f'{"#" * block.level} {_escape(block.text)}'
            case blocks.Text():
                yield _escape(block.text)
            case blocks.Table():
                yield _escape(block.caption)
                yield _table(block)
            case blocks.Figure():
                yield f'![{_escape(block.alt)}]({self._link(self._image_file(block.image))})'
                yield _escape(block.caption)
            case blocks.Chart() | blocks.Histogram():
                yield self._chart(block)
            case blocks.Charts():
                yield '\n'.join(self._chart(chart) for chart in block.charts)
                yield _escape(block.caption)
            case blocks.VideoComparison():
                links = [f'[{_escape(label)}]({self._link(path)})' for label, path in block.videos.items()]
                yield f'Videos: {", ".join(links)}'

    def _link(self, path: StoragePath) -> str:
        return quote(relative_path(path, self._folder.parent))

    def _image_file(self, image: StoragePath | bytes) -> StoragePath:
        if not isinstance(image, bytes):
            return image
        self._images += 1
        path = self._folder / f'image_{self._images}{read_image(image).suffix}'
        make_folder(self._folder)
        write_bytes(path, image)
        return path

    def _chart(self, chart: blocks.Chart | blocks.Histogram) -> str:
        self._charts += 1
        path = self._folder / f'chart_{self._charts}.svg'
        make_folder(self._folder)
        write_text(path, standalone_svg(chart))
        return f'![{_escape(f"{chart.title} against {chart.x_label}")}]({self._link(path)})'


def _table(table: blocks.Table) -> str:
    head = [_escape(f'{column.title} ({column.detail})' if column.detail else column.title) for column in table.columns]
    rule = ['---:' if column.numeric else '---' for column in table.columns]
    lines = [head, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.mark is Mark.BEST:
        text = f'**{text}**'
    return ' '.join(filter(None, [SIGNS.get(cell.mark, ''), text, _escape(cell.detail)]))


def _escape(text: str) -> str:
    """Escapes what Markdown, its tables or HTML would read as marks; line breaks become spaces."""
    return re.sub(r'([\\`*_{}\[\]<>|~#])', r'\\\1', ' '.join(text.split())).replace('&', '&amp;')
