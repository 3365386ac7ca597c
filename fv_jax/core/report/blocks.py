"""The blocks that a report consists of. `page.to_html` and `markdown.to_markdown` write them."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3; the title of the report is level 1."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; the page sets one that is a `lead`, the summary of the report, in larger type."""

    text: str
    lead: bool = False


class Mark(enum.Enum):
    """What a cell of a table is marked as. A mark is a sign or a weight, never a colour alone."""

    NONE = ''
    BEST = 'best'
    BETTER = 'better'
    WORSE = 'worse'


SIGNS = {Mark.BETTER: '✓', Mark.WORSE: '✗'}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: the value.
      detail: of lesser weight, behind the value: a standard error, an interval.
      mark: what the cell is marked as.
    """

    text: str
    detail: str = ''
    mark: Mark = Mark.NONE


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      title: its header.
      detail: of lesser weight, below the title: a unit.
      numeric: whether its cells are aligned to the right.
    """

    title: str
    detail: str = ''
    numeric: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is the row's header."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ''

    def __post_init__(self):
        for row in self.rows:
            assert len(row) == len(self.columns), (len(row), len(self.columns))


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image.

    Attributes:
      image: a PNG, JPEG or WebP file, or the bytes of one.
      alt: replaces the image for those who do not see it.
      caption: below the image.
    """

    image: StoragePath | bytes
    alt: str
    caption: str = ''


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a line; `error` is half the length of its error bar."""

    x: float
    y: float
    error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Line:
    """Points joined by a line."""

    name: str
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Level:
    """A value that does not depend on x: a dashed line."""

    name: str
    y: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over few values of x, which are evenly spaced whatever their distances.

    Attributes:
      title, x_label, y_label: texts.
      lines: the series, at most six with the levels.
      levels: horizontal lines to compare with.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()

    def __post_init__(self):
        assert any(line.points for line in self.lines), self.title


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of values in intervals of one length, as bars of one or several parts.

    Attributes:
      title, x_label, y_label: texts.
      edges: of the intervals, increasing, one more than intervals.
      parts: name -> a count for each interval; later parts are drawn on top of earlier ones; at most six.
    """

    title: str
    x_label: str
    edges: Sequence[float]
    parts: Mapping[str, Sequence[int]]
    y_label: str = ''

    def __post_init__(self):
        for counts in self.parts.values():
            assert len(counts) == len(self.edges) - 1, (len(counts), len(self.edges))


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts and histograms side by side."""

    charts: Sequence[Chart | Histogram]
    caption: str = ''


@dataclasses.dataclass(frozen=True)
class VideoComparison:
    """Two of several videos of the same scene, one over the other, with a vertical slider between them.

    Attributes:
      name: of the scene.
      videos: label -> mp4 file (H.264), all of one size, rate and length.
      size: (height, width) of the videos in pixels.
      fps: frames per second.
      left, right: the labels of the two that are shown first.
      poster: an image that is shown until the videos are loaded.
    """

    name: str
    videos: Mapping[str, StoragePath]
    size: tuple[int, int]
    fps: float
    left: str
    right: str
    poster: StoragePath | bytes | None = None

    def __post_init__(self):
        for label in (self.left, self.right):
            require(label in self.videos, f'{self.name}: no video is named {label!r}; the names are {[*self.videos]}')


Block = Heading | Text | Table | Figure | Chart | Histogram | Charts | VideoComparison


@dataclasses.dataclass(frozen=True)
class Report:
    """A title, and blocks in the order in which they are shown."""

    title: str
    blocks: Sequence[Block]
