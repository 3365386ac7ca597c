"""The page that shows what a selection keeps of prepared clips, what it drops, and why.

Counts by reason, histograms of all scores, clips that each reason drops, near duplicates beside their originals, and
the clips with the lowest and the highest scores. It is written by the renderer of `evaluate` (`core/report`).
"""

import io
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from fv_jax.core.console import print_result
from fv_jax.core.files import write_text
from fv_jax.core.paths import StoragePath
from fv_jax.core.report.blocks import Block, Cell, Charts, Column, Figure, Heading, Histogram, Report, Table, Text
from fv_jax.core.report.page import to_html
from fv_jax.data.curation.clip_table import ClipTable
from fv_jax.data.curation.filters import Filter
from fv_jax.data.curation.scores import SCORES
from fv_jax.data.even_indices import even_indices
from fv_jax.data.shards.selection import DUPLICATE, KEPT, Selected, Selection
from fv_jax.data.video.contact_sheet import thumbnail_sheet

log = logging.getLogger(__name__)

_BINS = 30
_TAIL = 99.0  # percentile: what is above is counted in the last interval
_EXAMPLES = 8  # clips of a sheet
_RANKED = ('bandwidth', 'sharpness', 'motion', 'noise', 'blocking', 'text', 'colorfulness', 'letterbox')


def report_selection(title: str, table: ClipTable, selection: Selection, page: StoragePath | None) -> None:
    """Prints how many clips are kept, and how many are dropped for which reason, and writes the page.

    Args:
      title: of the page.
      table: the clips and their scores.
      selection: what is kept of them.
      page: where to write it; None writes none.

    Raises:
      ConfigError: the filter needs a column that the clips have not.
      OSError: the page cannot be written.
    """
    selected = table.select(selection)
    print_result(describe_selection(table, selection, selected))
    for reason, count, total in count_reasons(selection, selected):
        print_result(f'  {count:,} ({total:,} in all): {reason}')
    if page is not None:
        write_text(page, to_html(build_report(title, table, selection, selected)))
        log.info(f'written: {page}')


def build_report(title: str, table: ClipTable, selection: Selection, selected: Selected) -> Report:
    """Builds the page of some clips.

    Args:
      title: of the page.
      table: the clips and their scores.
      selection: of them.
      selected: what it keeps and drops.
    """
    blocks = [
        Text(describe_selection(table, selection, selected), lead=True),
        *_reasons(table, selection, selected),
        *_scores(table, selected.dropped),
        *_dropped_clips(table, selection, selected.dropped),
        *_duplicates(table),
        *_extremes(table),
    ]
    return Report(title, blocks)


def describe_selection(table: ClipTable, selection: Selection, selected: Selected) -> str:
    """Describes in a sentence or two how many clips are kept."""
    kept = int((selected.dropped == KEPT).sum())
    videos = len({*table.columns['source'].tolist()})
    share = f' ({kept / len(table):.1%})' if len(table) else ''
    by = f'filter: {selection.filter.text}.' if selection.filter.terms else 'no filter.'
    return f'{_count(len(table))} of {videos:,} video(s), {_show_time(table.seconds())}; {kept:,} kept{share}; {by}'


def count_reasons(selection: Selection, selected: Selected) -> list[tuple[str, int, int]]:
    """Counts dropped clips.

    Returns:
      For each reason of the selection: the reason, the clips for which it is the first, and all to which it applies.
    """
    dropped = selected.dropped
    counts = np.bincount(dropped[dropped != KEPT], minlength=len(selection.reasons)).tolist()
    found = list(zip(selection.reasons, counts, selected.totals.tolist(), strict=True))
    return found if selection.drop_duplicates else found[:-1]


def _reasons(table: ClipTable, selection: Selection, selected: Selected) -> Iterator[Block]:
    yield Heading('Why clips are dropped')
    rows = [
        [Cell(reason), Cell(f'{first:,}'), Cell(f'{first / max(len(table), 1):.1%}'), Cell(f'{total:,}')]
        for reason, first, total in count_reasons(selection, selected)
    ]
    kept = int((selected.dropped == KEPT).sum())
    rows.append([Cell('kept'), Cell(f'{kept:,}'), Cell(f'{kept / max(len(table), 1):.1%}'), Cell('')])
    numbers = (('Clips', 'first reason'), ('Share', ''), ('Clips', 'in all'))
    yield Table(
        [Column('Reason'), *(Column(name, detail, True) for name, detail in numbers)],
        rows,
        'A clip is counted for the first reason that applies to it, in this order; "in all" counts it for each.',
    )


def _scores(table: ClipTable, dropped: np.ndarray) -> Iterator[Block]:
    charts, rows, constant = [], [], []
    for name, values in table.scores().items():
        present = values[np.isfinite(values)]
        if not len(present):
            constant.append(f'{name}: none')
            continue
        if present.min() == present.max():
            constant.append(f'{name}: {present[0]:.4g}')
            continue
        charts.append(_histogram(name, values, dropped == KEPT, SCORES[name].unit or SCORES[name].meaning))
        quantiles = [Cell(f'{value:.4g}') for value in np.percentile(present, [0, 10, 50, 90, 100])]
        missing = len(values) - len(present)
        meaning = SCORES[name].meaning + (f'; of {_count(missing)} unknown' if missing else '')
        rows.append([Cell(name), *quantiles, Cell(meaning)])
    yield Heading('Scores')
    if charts:
        yield Charts(charts, 'The last interval has everything above it.')
        names = ('Minimum', '10 %', 'Median', '90 %', 'Maximum')
        yield Table([Column('Score'), *(Column(name, '', True) for name in names), Column('Meaning')], rows)
    if constant:
        yield Text(f'The same for all clips: {"; ".join(constant)}.')


def _histogram(name: str, values: np.ndarray, kept: np.ndarray, label: str) -> Histogram:
    present = np.isfinite(values)
    low, high = values[present].min(), np.percentile(values[present], _TAIL)
    high = high if high > low else values[present].max()
    edges = np.linspace(low, high, _BINS + 1)
    shown = np.clip(values, low, high)
    parts = {'kept': kept, 'dropped': ~kept}
    counts = {part: np.histogram(shown[present & chosen], edges)[0].tolist() for part, chosen in parts.items()}
    counts = {part: values for part, values in counts.items() if part == 'kept' or any(values)}
    return Histogram(name, label, edges.tolist(), counts, 'clips')


def _dropped_clips(table: ClipTable, selection: Selection, dropped: np.ndarray) -> Iterator[Block]:
    found = [(number, np.flatnonzero(dropped == number)) for number in range(len(selection.filter.terms))]
    if not any(len(indices) for _, indices in found):
        return
    yield Heading('What each filter drops')
    for number, indices in found:
        if len(indices):
            term = selection.filter.terms[number]
            names = Filter.parse(term.text).names
            yield Heading(f'{selection.reasons[number]}: {_count(len(indices))}', 3)
            yield from _sheet(table, _spread(indices), names, f'clips that are {selection.reasons[number]}')


def _duplicates(table: ClipTable) -> Iterator[Block]:
    pairs = table.duplicates()
    if not len(pairs):
        return
    yield Heading('Near duplicates')
    yield Text(f'{_count(len(pairs))}; each is shown behind the clip that it is like.')
    yield from _sheet(table, _spread(pairs, _EXAMPLES).ravel(), (), DUPLICATE)


def _extremes(table: ClipTable) -> Iterator[Block]:
    scores = table.scores()
    yield Heading('Lowest and highest')
    yield Text(
        f'Of more than {_EXAMPLES} clips, those with the lowest values and those with the highest ones, in order.'
    )
    for name in _RANKED:
        values = scores.get(name, np.zeros(0))
        order = np.argsort(values, kind='stable')[: int(np.isfinite(values).sum())]
        if not len(order) or values[order[0]] == values[order[-1]]:
            continue
        half = _EXAMPLES // 2
        yield Heading(f'{name}: {SCORES[name].meaning}', 3)
        chosen = order if len(order) <= _EXAMPLES else [*order[:half], *order[-half:]]
        yield from _sheet(table, chosen, (name,), f'the clips with the lowest and the highest {name}')


def _show_time(seconds: float) -> str:
    for unit, name in ((3600, 'hours'), (60, 'minutes')):
        if seconds >= unit:
            return f'{seconds / unit:.3g} {name}'
    return f'{seconds:.3g} seconds'


def _count(number: int) -> str:
    return f'{number:,} clip{"" if number == 1 else "s"}'


def _spread(items: np.ndarray, count: int = _EXAMPLES) -> np.ndarray:
    """Returns at most so many items, evenly spaced."""
    return items[even_indices(len(items), count)]


def _sheet(table: ClipTable, indices: Sequence[int], names: Sequence[str], alt: str) -> Iterator[Block]:
    tiles = []
    for index in indices:
        frame = table.read_frame(int(index))
        if frame is None:
            yield Text('The records hold no videos: no frames are shown.')
            return
        values = ', '.join(f'{name} {table.show(name, int(index))}' for name in names)
        tiles.append((': '.join(filter(None, [values, table.describe(int(index))])), frame))
    buffer = io.BytesIO()
    thumbnail_sheet(tiles).save(buffer, 'JPEG', quality=85)
    yield Figure(buffer.getvalue(), alt)
